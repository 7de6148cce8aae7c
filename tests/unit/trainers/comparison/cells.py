"""Rows of a comparison with numbers that are easy to follow."""

from __future__ import annotations

from typing import Any

from trainers.comparison.result import CellResult


def result(label: str = "ViLT, pixels", seed: int = 0, **changes: Any) -> CellResult:
    """A finished cell."""
    usual: dict[str, Any] = {
        "cell": f"{label}{seed}",
        "recipe": "vilt_vqa",
        "model": "ViLT",
        "task": "vqa",
        "data": "vqav2",
        "visual": "pixels",
        "view": "pixels",
        "steps": 40,
        "batch_size": 8,
        "metric": "accuracy",
        "score": 50.0,
        "blind": 40.0,
        "scores": {"accuracy": 50.0, "yes/no": 60.0},
        "examples": 150,
        "parameters": 2_000_000,
        "extraction_ms": 0.0,
        "extraction_hours": 0.0,
        "feature_bytes": 0,
        "pretraining_hours": 0.0,
        "step_ms": 20.0,
        "training_hours": 0.5,
        "pixels_visual_ms": 4.0,
        "pixels_transformer_ms": 3.0,
        "pixels_heads_ms": 2.0,
        "pixels_rest_ms": 1.0,
        "peak_bytes": 3 << 20,
        "device": "cpu",
        "hardware": "a machine",
        "date": "2026-01-02",
        "curve": (
            {"step": 20, "loss": 2.0, "score": None},
            {"step": 20, "loss": None, "score": 45.0},
            {"step": 40, "loss": 1.0, "score": None},
            {"step": 40, "loss": None, "score": 50.0},
        ),
    }
    return CellResult(**{**usual, "label": label, "seed": seed, **changes})


def cached(label: str = "VL-BERT, cached regions", seed: int = 0, **changes: Any) -> CellResult:
    """A finished cell that reads a cache."""
    cache = {"cache_visual_ms": 1.0, "cache_transformer_ms": 3.0, "cache_heads_ms": 2.0, "cache_rest_ms": 1.0}
    usual = {
        "model": "VL-BERT",
        "visual": "store",
        "view": "regions",
        "pixels_visual_ms": 90.0,
        "extraction_ms": 80.0,
        "extraction_hours": 0.25,
        "feature_bytes": 5 << 20,
        "specs": ("ab" * 32,),
    }
    return result(label, seed, **{**usual, **cache, **changes})
