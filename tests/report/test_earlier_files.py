"""Reports and widths that an earlier version wrote are read, field by field."""

from __future__ import annotations

import json

import pytest

from prunus.base.errors import CheckpointError
from prunus.report.card import model_card
from prunus.report.report import read_report
from prunus.report.units import BlockChange, BlockWidths, UnitsReport
from prunus.storage.widths import read_widths, to_json

WIDTHS = """{"format": 1, "blocks": [
  {"heads": 2, "kv_heads": 1, "intermediate": 93, "bias_o": true, "bias_down": false, "numbers": \
{"attn.num_heads": 2}},
  {"heads": null, "kv_heads": null, "intermediate": null, "bias_o": false, "bias_down": true, \
"numbers": {}}
]}
"""
REPORT = """{"model": "org/dense", "method": "flap", "pruner": "UnitPruner(heads=Flap())",
"pattern": null, "requested": 0.4, "sparsity": 0.39, "coverage": {"parameters": 190848,
"embeddings": 65536, "block_weights": 122880, "pruned_weights": 122880, "kept": 0,
"kept_modules": []}, "protocol": {"source": "tokens given", "samples": 8, "length": 32, "seed": 0,
"documents": 0, "documents_used": 0, "concatenated": false, "sha256": "a90f", "field": null,
"split": null, "skipped": 0, "bos": "auto"}, "seconds": 0.7, "layers": [{"name":
"transformer.h.0.attn.c_attn", "role": "qkv", "block": 0, "shape": [192, 64], "transposed": true,
"pattern": "heads", "requested": 0.5, "sparsity": 0.5, "relative_output_error": null, "updated":
false, "error_before_update": null, "seconds": 0.1, "notes": {"units_kept": 2, "units": 4, "kept":
[2, 3], "shape": [96, 64]}, "expert": null}], "experts": [], "structured": {"parameters": [190848,
141248], "removable": 124032, "removed": 49600, "multiply_adds": [155648, 106496], "stock": false,
"blocks": [{"block": 0, "heads": [4, 2], "kv_heads": [4, 2], "neurons": [192, 93], "parameters":
[41728, 20669], "kept_heads": [2, 3], "divergence": [[0.0, 0.5], [0.5, 0.0]]}, {"block": 1, "heads":
null, "kv_heads": null, "neurons": null, "parameters": [41728, 41728], "kept_heads": null,
"divergence": null}], "auto": "AutoModelForCausalLM"}, "allocation": "Uniform()", "learning": [],
"grid": null, "packed": false, "paper": "An et al. 2024", "url": "https://example.org",
"processes": 1, "source": null, "different": {}, "versions": {"prunus": "0.1.0", "torch": "2.13.0",
"transformers": "5.23.0", "python": "3.11.7"}}"""


def test_widths(tmp_path):
    (tmp_path / "widths.json").write_text(WIDTHS)
    found = read_widths(tmp_path)
    assert found == [
        BlockWidths(2, 1, 93, True, False, {"attn.num_heads": 2}),
        BlockWidths(None, None, None, False, True, {}),
    ]
    assert to_json(found) == WIDTHS


def test_widths_of_other_writers_may_leave_out_what_has_a_default(tmp_path):
    block = {"heads": 2, "kv_heads": 1, "intermediate": 93, "more": "of theirs"}
    (tmp_path / "widths.json").write_text(json.dumps({"format": 1, "blocks": [block]}))
    assert read_widths(tmp_path) == [BlockWidths(2, 1, 93, False, False, {})]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"heads": 2', '"heads": -2', r"blocks\.0\.heads: .* greater than or equal to 0"),
        ('"heads": 2', '"heads": "2"', r"blocks\.0\.heads: .* valid integer"),
        ('"bias_o": false', '"bias_o": 0', r"blocks\.1\.bias_o: .* valid boolean"),
        ('"format": 1', '"format": 2', "has format 2"),
        ('"blocks"', '"block"', "is damaged"),
    ],
)
def test_damaged_widths(before, after, message, tmp_path):
    assert before in WIDTHS
    (tmp_path / "widths.json").write_text(WIDTHS.replace(before, after, 1))
    with pytest.raises(CheckpointError, match=message):
        read_widths(tmp_path)


def test_a_report_of_heads_and_neurons(tmp_path):
    (tmp_path / "pruning_report.json").write_text(REPORT)
    report = read_report(tmp_path)
    changed = BlockChange(
        0, (4, 2), (4, 2), (192, 93), (41728, 20669), [2, 3], [[0.0, 0.5], [0.5, 0.0]]
    )
    same = BlockChange(1, None, None, None, (41728, 41728))
    assert report.structured == UnitsReport(
        (190848, 141248), 124032, 49600, (155648, 106496), False, [changed, same]
    )
    added = json.loads(REPORT)  # the same keys, and those that are new
    added |= {"recovery_protocol": None, "search": None, "reconstruction": None}
    added["reconstructed"] = []
    added["protocol"] |= {"answers": None, "share": 0.0, "parts": [], "distinct": 1.0}
    added["structured"]["in_range"] = None
    for block in added["structured"]["blocks"]:
        block["below"] = None
    assert json.loads(report.to_json()) == added
    assert report.structured.share == 49600 / 124032
    assert report.structured.share_of_blocks == 1 - 20669 / 41728  # of the one block in the range
    assert report.structured.share_of_model == 1 - 141248 / 190848
    assert changed.became(BlockWidths(2, 2, 93))
    assert not changed.became(BlockWidths(2, 2, 94))
    assert same.became(BlockWidths(4, 4, 192))
    card = model_card(report, "method: flap\n")
    for part in (
        "# org/dense, smaller",
        "190,848 parameters became 141,248",
        "49,600 of 124,032 parameters, which is 40.0% of the parameters in heads and neurons of "
        "the chosen blocks, 50.5% of all parameters in these blocks, 26.0% of the whole model",
        "| 0 | 4 → 2 | 4 → 2 | 192 → 93 | 50.5% |",
        'model = prunus.load("this folder")',
        "```yaml\nmethod: flap\n```",
    ):
        assert part in card
    assert "Relative output error" not in card
