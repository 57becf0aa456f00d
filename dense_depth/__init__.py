"""Dense depth labels for camera BEV detectors, from LiDAR sweeps."""

__version__ = "0.3.0"


class InputError(Exception):
    """Input that cannot be used: the message is one line naming the file, token or option, and what to do.

    Commands print the message and exit with status 2.
    """
