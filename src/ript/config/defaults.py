"""The suite and the kind of policy of a configuration that does not say: records of 0.1.0 do not."""

SUITE = "metaworld"
KIND = "quest"
