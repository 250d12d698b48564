"""A store of another version is called so, also where its tables are alike and only its digests are others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from faults.store_scripts import SCRIPTS

from fedpruneshare import storage
from fedpruneshare.errors import SettingsError, StoreDamagedError

#: Format -> SHA-256 over all row digests that the scripts of F09 leave in a store, by role.
KNOWN = {
    1: {
        "aggregator": "5b9877d6361bb64aaf773845252f5e94bc34e7b8abe2b1d00f871392bcd02f56",
        "coordinator": "d173d3c38b84823844c40c2aedddf35fe2e2d717034caab3e1f78828b8ad5d1a",
    }
}


def row_digests(role: str, folder: Path) -> str:
    """Every digest that any row had after any step."""
    make, steps, _ = SCRIPTS[role]
    store, found = make(folder), set[bytes]()
    tables = [row[0] for row in store._db.execute("SELECT name FROM sqlite_master WHERE sql LIKE '%digest BLOB%'")]
    assert len(tables) >= 2
    for step in steps:
        step(store)
        for table in tables:
            found |= {row[0] for row in store._db.execute(f"SELECT digest FROM {table}") if row[0]}
    store.close()
    return hashlib.sha256(b"".join(sorted(found))).hexdigest()


@pytest.mark.parametrize("role", SCRIPTS)
def test_what_digests_cover_changes_with_the_format_only(role: str, tmp_path: Path) -> None:
    found = row_digests(role, tmp_path)
    assert found == KNOWN.get(storage.FORMAT, {}).get(role), (
        "rows are digested otherwise than stores of this format are: raise fedpruneshare.storage.FORMAT, and put the "
        f"new digests here ({role}: {found})"
    )


@pytest.mark.parametrize("role", SCRIPTS)
def test_a_store_of_another_format_is_not_called_damaged(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, steps, _ = SCRIPTS[role]
    with monkeypatch.context() as older:
        older.setattr(storage, "FORMAT", 0)
        store = make(tmp_path)
        for step in steps:
            step(store)
        store.close()
    with pytest.raises(SettingsError, match="written by another version") as refused:
        make(tmp_path)
    assert not isinstance(refused.value, StoreDamagedError)
