"""The mixed-precision plan that is as small or as fast as an accuracy budget allows, found and certified.

result = search("runs/flowers/checkpoints/fp32", "flowers102", out="runs/search", max_drop=0.5, objective="size")
"""

from petalite.budget.certificate import Certificate, certify
from petalite.budget.problem import OBJECTIVES
from petalite.budget.run import search

__all__ = ["OBJECTIVES", "Certificate", "certify", "search"]
