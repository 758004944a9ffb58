"""From a version's row in the ledger to what an engine loads."""

from autonomous.versions.bundle import kind_of
from autonomous.versions.schema import VersionRecord
from train.adapt.reference import AdapterRef


def reference_of(record: VersionRecord) -> AdapterRef | None:
    """The adapter or the weights of a version; None for the frozen original and for a run."""
    if record.adapter_number is None:
        return None
    return AdapterRef(
        name=record.name, number=record.adapter_number, folder=str(record.folder), kind=kind_of(record.manifest)
    )
