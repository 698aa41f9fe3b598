"""What is written about a run: the report for machines, the model card for people."""

from .card import model_card
from .report import Coverage, PruningReport

__all__ = ["Coverage", "PruningReport", "model_card"]
