"""For all tests."""

import signal

# Started in the background of a shell, this process inherits an ignored SIGINT, and so would the programs that the
# tests of Ctrl-C start.
signal.signal(signal.SIGINT, signal.default_int_handler)
