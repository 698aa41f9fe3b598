"""What is written about a run: the report for machines, the model card for people."""

from .model_card import model_card
from .pruning_report import Coverage, PruningReport

__all__ = ["Coverage", "PruningReport", "model_card"]
