"""A worker that is killed before it is ready."""

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
