"""The commands of `vesuvius kaggle`, one module each; `kaggle_client` alone knows the service."""

from __future__ import annotations

from core.terminal import Command

KAGGLE = {
    "download": Command(
        "fetch and unpack the competition's data", "vesuvius.kaggle_download:download"
    ),
    "push": Command(
        "upload what `vesuvius package` wrote: dataset, then kernel", "vesuvius.kaggle_push:push"
    ),
    "status": Command("tell how far dataset and kernel are", "vesuvius.kaggle_status:status"),
    "submit": Command(
        "submit what the kernel wrote, under its ledger name",
        "vesuvius.kaggle_submit:submit",
    ),
    "scores": Command(
        "list submissions and put their scores into the ledger", "vesuvius.kaggle_scores:scores"
    ),
}
