"""A scripted expert made from one human demonstration: what a person did, adapted to where things stand now.

The demonstration is replayed once, and divided by when the things that its goal is about begin to move. The hand's path
toward a thing is shifted by as much as the thing is; the path with it in hand by as much as the place that it goes to;
between two such shifts it goes over from one to the other. The hand is kept on the shifted path by feedback, and waits
where it fell behind. From the state of the demonstration itself the actions are the person's own, but for what feedback
adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ript.sims.libero.bddl import Fact
from ript.sims.libero.controller import POSITION_SCALE, ROTATION_SCALE
from ript.sims.libero.human import WAITING
from ript.sims.libero.states import Parts, SceneParts
from ript.sims.libero.step import Physics

MOVED, TURNED = 0.01, 0.02
"""Metres by which an object, and metres or radians by which a joint, has moved."""
STILL = 0.0005
"""Metres or radians a step: what moves less, rests."""
SHIFTED = 0.7
"""Share of the way between two shifts at whose end the second holds wholly."""
GAIN, TURN_GAIN = 1.5, 1.0
"""What the action asks for more, in units of the hand's error."""
BEHIND, PATIENCE = 0.02, 6
"""Metres at which the hand waits, and for how many steps at most."""
SLIP = 0.03
"""Metres by which a thing may lie otherwise in the hand, and be allowed for."""


class Span(NamedTuple):
    """A thing moves from step `begin` to `end`, and then is at home with another: columns in `Track.bodies`, -1 the
    table."""

    begin: int
    end: int
    thing: int
    goal: int
    carried: bool


@dataclass(frozen=True, eq=False)
class Track:
    """How a demonstration went: rows are steps, each as things were before its action.

    Attributes:
        actions: `[T, 7]`.
        hand, turn: the gripper's site, `[T, 3]` m and `[T, 3, 3]`.
        bodies: ids of objects and fixtures, `[B]`.
        places: of them, `[T, B, 3]` m.
        resting: step at which each of them is picked up; T: it never is. `[B]`.
        weights: of the shifts of bodies and, last, of the hand at the start: `[T, B + 1]`.
        held: column of what is carried, or -1: `[T]`.
    """

    actions: np.ndarray
    hand: np.ndarray
    turn: np.ndarray
    bodies: np.ndarray
    places: np.ndarray
    resting: np.ndarray
    weights: np.ndarray
    held: np.ndarray


def make_track(physics: Physics, scene: SceneParts, start: Parts, goal: Sequence[Fact], actions: np.ndarray) -> Track:
    """Replay a demonstration and divide it.

    Args:
        physics: in whose model the fixtures stand as the demonstration had them; its state is lost.
        scene: of the task.
        start: the demonstration's initial state.
        goal: of the task.
        actions: `[T, 7]`.
    """
    facts, model, data = scene.facts, scene.model, physics.data
    things = {**facts["objects"], **facts["fixtures"]}
    names = list(things)
    bodies = np.array([model.body(one["body"]).id for one in things.values()])
    angles = {
        name: [int(model.joint(joint).qposadr[0]) for joint in facts["fixtures"][name]["joints"]]
        for name in facts["fixtures"]
    }
    physics.reset(start.time, start.qpos, start.qvel)
    for _ in range(start.settle):
        physics.step(np.array(WAITING))
    hand, turn, places, qpos = [], [], [], []
    for action in actions:
        hand.append(data.site_xpos[scene.arm.site].copy())
        turn.append(data.site_xmat[scene.arm.site].reshape(3, 3).copy())
        places.append(data.xpos[bodies].copy())
        qpos.append(data.qpos.copy())
        physics.step(action)
    path, joints = np.array(places), np.array(qpos)
    spans, resting = [], np.full(len(names), len(actions))
    column = {int(body): number for number, body in enumerate(bodies)}
    goes = {fact[1]: column.get(scene.body(fact[2]), -1) for fact in goal if len(fact) == 3}
    for number, name in enumerate(names):
        carried = name in facts["objects"]
        begun = _moving(path[:, number], MOVED) if carried else _moving(joints[:, angles[name]], TURNED)
        if begun is None:
            continue
        if carried and name in goes:
            resting[number] = begun[0]
        if not carried or name in goes:
            spans.append(Span(*begun, number, goes[name] if carried else number, carried))
    weights, held = _weights(np.array(hand), sorted(spans), len(names))
    return Track(actions, np.array(hand), np.array(turn), bodies, path, resting, weights, held)


def _moving(rows: np.ndarray, threshold: float) -> tuple[int, int] | None:
    """The steps from when to when a thing moves; None if it never does."""
    if rows.shape[1] == 0:
        return None
    away = np.abs(rows - rows[0]).max(1) > threshold
    if not away.any():
        return None
    begin = int(np.argmax(away))
    steps = np.abs(np.diff(rows, axis=0)).max(1) > STILL
    return begin, int(np.flatnonzero(steps)[-1]) + 1


def _weights(hand: np.ndarray, spans: Sequence[Span], bodies: int) -> tuple[np.ndarray, np.ndarray]:
    """`Track.weights` and `Track.held`."""
    steps = len(hand)
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(hand, axis=0), axis=1))])
    weights, held = np.zeros((steps, bodies + 1)), np.full(steps, -1)
    at, now = 0, bodies  # the hand's own shift
    for number, span in enumerate(spans):
        following = spans[number + 1].begin if number + 1 < len(spans) else steps
        begin, end = max(span.begin, at), min(max(span.end, span.begin), following)
        _go_over(weights, way, at, begin, now, span.thing)
        _go_over(weights, way, begin, end, span.thing, span.goal)
        held[begin:end] = span.thing if span.carried else -1
        at, now = end, span.goal
    _go_over(weights, way, at, steps, now, now)
    return weights, held


def _go_over(weights: np.ndarray, way: np.ndarray, begin: int, end: int, one: int, other: int) -> None:
    """From the shift of one body at step `begin` to that of another at `end`, by how far the hand has gone."""
    if end <= begin:
        return
    share = (way[begin:end] - way[begin]) / max(SHIFTED * (way[end - 1] - way[begin]), 1e-6)
    share = np.clip(share, 0.0, 1.0)
    share = share * share * (3.0 - 2.0 * share)
    for column, weight in ((one, 1.0 - share), (other, share)):
        if column >= 0:
            weights[begin:end, column] += weight


class Follower:
    """Follows a track through one episode, in which it is asked before every action.

    Args:
        track: of the task.
        site: id of the gripper's.

    Attributes:
        asked: how often it was.
    """

    def __init__(self, track: Track, site: int):
        self._track, self._site = track, site
        self.asked, self._step, self._waited = 0, 0, 0
        self._shifts = np.zeros((len(track.bodies) + 1, 2))

    def action(self, data: Any) -> np.ndarray:
        """The action for the present state, the next one of the episode: float64 `[7]` in [-1, 1]."""
        track, k = self._track, min(self._step, len(self._track.actions) - 1)
        hand, turn = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        error = self._wanted(k, data.xpos[track.bodies], hand) - hand
        action = track.actions[k].copy()
        waits = np.linalg.norm(error) > BEHIND and self._waited < PATIENCE
        if waits or self._step >= len(track.actions):
            action[:6] = 0.0
        self.asked += 1
        if waits:
            self._waited += 1
        else:
            self._step, self._waited = self._step + 1, 0
        action[:3] += GAIN * error / POSITION_SCALE
        action[3:6] += TURN_GAIN * _turn(track.turn[k] @ turn.T) / ROTATION_SCALE
        return np.clip(action, -1.0, 1.0)

    def _wanted(self, k: int, places: np.ndarray, hand: np.ndarray) -> np.ndarray:
        """Where the hand should be: the track's place, shifted in the plane of the table."""
        track, shifts = self._track, self._shifts
        if self._step == 0 and self._waited == 0:
            shifts[-1] = (hand - track.hand[0])[:2]
        rests = track.resting > k
        shifts[:-1][rests] = (places - track.places[k])[rests, :2]
        wanted = track.hand[k].copy()
        wanted[:2] += track.weights[k] @ shifts
        if (held := track.held[k]) >= 0:
            slipped = (places[held] - hand) - (track.places[k, held] - track.hand[k])
            wanted[:2] -= np.clip(slipped[:2], -SLIP, SLIP)
        return wanted


def _turn(matrix: np.ndarray) -> np.ndarray:
    """A rotation of less than half a turn -> axis times angle `[3]`, rad."""
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]) / 2.0
    sine = float(np.linalg.norm(axis))
    angle = np.arctan2(sine, (np.trace(matrix) - 1.0) / 2.0)
    return axis if sine < 1e-6 else axis * (angle / sine)
