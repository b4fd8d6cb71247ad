"""Better packed weights from a few hundred unlabelled images.

found = calibrate(parent, plan, calibration_pixels(images, preprocess, 256), method="gptq")
"""

from petalite.calibration.images import calibration_pixels
from petalite.calibration.walk import METHODS, STEPS, Calibrated, calibrate, check_method

__all__ = ["METHODS", "STEPS", "Calibrated", "calibrate", "calibration_pixels", "check_method"]
