"""The verbs on a model: score, mask, remove, scan, measure, encode."""

from pruning.namesakes import refuse_namesakes

refuse_namesakes("spaces")  # before anything imports it

from pruning.analysis.sensitivity_scan import scan_sensitivity
from pruning.batchnorm import recalibrate_
from pruning.calibration import Calibration
from pruning.channel_order import channel_order, first_channels, reorder_channels
from pruning.channel_selection import plan_removal
from pruning.channels.plan import RemovalPlan
from pruning.channels.removal import RemovalMismatch, shrink
from pruning.channels.structure import Structure, apply_structure
from pruning.channels.tracing import trace_channels
from pruning.cost import measure_cost
from pruning.file.stored_form import to_stored_form_
from pruning.file.versions import read_sparse, write_sparse
from pruning.holding import held_masks
from pruning.importance.own_criteria import register_criterion
from pruning.importance.reconstruction import refit_next_layers
from pruning.importance.scores import ImportanceScores
from pruning.masks import apply_masks_, make_mask
from pruning.prune import prune
from pruning.schedule import sparsity_at
from pruning.sparse_file import encode_model
from pruning.torch_prune import from_torch_prune, method_choice, policy_of_masks, to_torch_prune

__all__ = [
    "Calibration", "ImportanceScores", "RemovalMismatch", "RemovalPlan", "Structure", "apply_masks_", "apply_structure",
    "channel_order", "encode_model", "first_channels", "from_torch_prune", "held_masks", "make_mask", "measure_cost",
    "method_choice", "plan_removal", "policy_of_masks", "prune", "read_sparse", "recalibrate_", "refit_next_layers",
    "register_criterion", "reorder_channels", "scan_sensitivity", "shrink", "sparsity_at", "to_stored_form_",
    "to_torch_prune", "trace_channels", "write_sparse",
]  # fmt: skip

Scores = ImportanceScores  # its name until 0.1
