"""Which model events are taken: signed by a trusted key, over these very bytes, and no others."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from infra.command.main import app
from schemas.errors import InvalidConfiguration, TidemillError
from schemas.examples import announced
from schemas.model import Manifest, ModelPublished, RolledBack, Scores
from schemas.signature import (
    SignatureRefused,
    SignerUnknown,
    TrustedKeys,
    canonical,
    key_id,
    public_key_text,
    read_public_key,
)
from trainers.keys import KeyFolder

PUBLISHED = next(each for each in announced() if isinstance(each, ModelPublished))
ROLLED_BACK = next(each for each in announced() if isinstance(each, RolledBack))


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(tmp_path / "keys")
    folder.ensure()
    return folder


def is_taken(trusted: TrustedKeys, event: bytes) -> bool:
    try:
        trusted.manifest(event)
    except (SignatureRefused, SignerUnknown):
        return False
    return True


@pytest.mark.parametrize("event", [PUBLISHED, ROLLED_BACK], ids=["published", "rolled back"])
def test_what_the_trainer_signs_is_taken_and_read_as_it_was(
    keys: KeyFolder, event: ModelPublished | RolledBack
) -> None:
    signed = keys.signed(event)
    assert keys.trusted().manifest(signed.encoded()) == event.manifest
    # Said again after a restart, from what was read: the same bytes, so the same signature.
    again = msgspec.json.decode(signed.encoded(), type=type(event))
    assert again == signed
    assert again.encoded() == signed.encoded() == keys.signed(again).encoded()


def test_each_byte_of_the_manifest_and_each_bit_of_the_signature_counts(keys: KeyFolder) -> None:
    event = keys.signed(PUBLISHED).encoded()
    trusted = TrustedKeys([key.public for key in keys.listed()])
    manifest = canonical(PUBLISHED.manifest)
    begins = event.index(manifest)
    signatures = event.index(b'"signatures"')
    places = [(place, place % 8) for place in range(begins, begins + len(manifest))]
    places += [(place, bit) for place in range(signatures, len(event)) for bit in range(8)]
    assert len(places) > 2000
    assert is_taken(trusted, event)
    taken = []
    for place, bit in places:
        forged = bytearray(event)
        forged[place] ^= 1 << bit
        if is_taken(trusted, bytes(forged)):
            taken.append((place, bit))
    assert taken == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"version":2', b'"version":3'),
        (b'"version":2', b'"version":2.0'),
        (b'"version":2', b'"version":1,"version":2'),
        (b'"version":2', b'"version": 2'),
        (b'"mean":1077.5', b'"mean":1077.50'),
        (b'"architecture":"tabular"', b'"architecture":"t\\u0061bular"'),
        (b'"champion":{', b'"added":1,"champion":{'),
    ],
)
def test_another_spelling_of_the_same_manifest_is_another_manifest(
    keys: KeyFolder, before: bytes, after: bytes
) -> None:
    event = keys.signed(PUBLISHED).encoded()
    assert event.count(before) >= 1
    with pytest.raises(SignatureRefused):
        TrustedKeys([key.public for key in keys.listed()]).manifest(event.replace(before, after))


def test_fields_of_a_newer_trainer_are_under_its_signature_too(keys: KeyFolder) -> None:
    class Newer(Manifest, frozen=True, kw_only=True):
        added: str

    newer = msgspec.convert({**msgspec.to_builtins(PUBLISHED.manifest), "added": "here"}, Newer)
    raw = msgspec.json.encode(newer, order="sorted")
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    signature = private.sign(b"tidemill.model.manifest.v1\n" + raw).hex()
    event = b'{"manifest":%s,"name":"flights","signatures":[{"ed25519":"%s","key_id":"%s"}]}' % (
        raw,
        signature.encode(),
        key_id(public).encode(),
    )
    trusted = TrustedKeys([public_key_text(public)])
    assert trusted.manifest(event) == PUBLISHED.manifest
    assert not is_taken(trusted, event.replace(b'"here"', b'"hers"'))


def test_a_signature_for_another_purpose_is_none(keys: KeyFolder) -> None:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    signed = keys.signed(PUBLISHED)
    (signature,) = signed.signatures
    bare = msgspec.structs.replace(
        signature, key_id=key_id(public), ed25519=private.sign(canonical(signed.manifest)).hex()
    )
    event = msgspec.structs.replace(signed, signatures=[bare])
    assert not is_taken(TrustedKeys([public_key_text(public)]), event.encoded())


def test_unsigned_and_strangers_models_are_refused_and_the_reason_names_the_keys(
    keys: KeyFolder, tmp_path: Path
) -> None:
    stranger = KeyFolder(tmp_path / "stranger")
    stranger.ensure()
    (theirs,), (ours,) = stranger.listed(), keys.listed()
    trusted = TrustedKeys([ours.public])
    with pytest.raises(SignatureRefused, match="not signed"):
        trusted.manifest(PUBLISHED.encoded())
    with pytest.raises(SignatureRefused, match=f"{theirs.id}.*{ours.id}"):
        trusted.manifest(stranger.signed(PUBLISHED).encoded())
    # A stranger who claims to be us.
    event = stranger.signed(PUBLISHED)
    claimed = [msgspec.structs.replace(each, key_id=ours.id) for each in event.signatures]
    with pytest.raises(SignatureRefused):
        trusted.manifest(msgspec.structs.replace(event, signatures=claimed).encoded())
    # A signature of ours, over another manifest.
    other = msgspec.structs.replace(PUBLISHED.manifest, version=9)
    moved = msgspec.structs.replace(keys.signed(PUBLISHED), manifest=other)
    with pytest.raises(SignatureRefused):
        trusted.manifest(moved.encoded())


def test_keys_are_rotated_without_a_moment_in_which_a_service_knows_none(keys: KeyFolder) -> None:
    (old,) = keys.listed()
    knows_old = TrustedKeys([old.public])
    new = keys.make()
    knows_new = TrustedKeys([new.public])
    between = keys.signed(PUBLISHED).encoded()
    assert is_taken(knows_old, between)
    assert is_taken(knows_new, between)
    keys.retire(old.id)
    after = keys.signed(PUBLISHED).encoded()
    assert not is_taken(knows_old, after)
    assert is_taken(knows_new, after)
    assert [key.id for key in keys.listed()] == [new.id]
    with pytest.raises(InvalidConfiguration, match="only key that signs"):
        keys.retire(new.id)
    with pytest.raises(InvalidConfiguration, match="no key"):
        keys.retire("0" * 16)


def test_what_a_retired_key_signed_is_refused_by_a_list_that_dropped_it(keys: KeyFolder) -> None:
    (old,) = keys.listed()
    of_old = keys.signed(PUBLISHED).encoded()
    trusted = keys.trusted()
    assert is_taken(trusted, of_old)
    keys.make()
    keys.retire(old.id)
    # The list is a file: no restart is needed.
    with pytest.raises(SignerUnknown, match=old.id):
        trusted.manifest(of_old)
    assert is_taken(trusted, keys.signed(PUBLISHED).encoded())


def test_a_list_that_vanishes_trusts_nobody_and_says_so(keys: KeyFolder) -> None:
    trusted, event = keys.trusted(), keys.signed(PUBLISHED).encoded()
    keys.trusted_file.unlink()
    with pytest.raises(SignerUnknown, match="cannot be read"):
        trusted.manifest(event)


def test_a_private_key_is_its_owners_alone(keys: KeyFolder) -> None:
    (path,) = keys.folder.glob("*.pem")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(InvalidConfiguration, match="chmod 600"):
            keys.signed(PUBLISHED)
        with pytest.raises(InvalidConfiguration, match="chmod 600"):
            KeyFolder(keys.folder).ensure()
    path.chmod(0o600)
    keys.signed(PUBLISHED)


def test_a_key_is_made_whole_also_under_a_lax_umask(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        KeyFolder(tmp_path / "keys").make()
    finally:
        os.umask(former)
    (path,) = (tmp_path / "keys").glob("*.pem")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_broken_key_and_no_key_are_named(keys: KeyFolder, tmp_path: Path) -> None:
    (path,) = keys.folder.glob("*.pem")
    path.write_text("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
    with pytest.raises(InvalidConfiguration, match=path.name):
        keys.signed(PUBLISHED)
    with pytest.raises(InvalidConfiguration, match="tidemill keys make"):
        KeyFolder(tmp_path / "none").signed(PUBLISHED)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfiguration, match=r"paths\.signing_keys"):
        KeyFolder(tmp_path / "file" / "keys").make()


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "ed25519:" + "é" * 44, "ed25519:" + "A" * 43 + "=="]
)
def test_a_text_that_is_no_public_key_is_a_mistake_of_configuration(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match="public key"):
        read_public_key(text)


def test_a_list_of_trusted_keys_that_cannot_be_one_is_refused_at_the_start(tmp_path: Path) -> None:
    for nothing in ([], "ed25519:x", tmp_path / "missing"):
        with pytest.raises(InvalidConfiguration):
            TrustedKeys(nothing)
    (tmp_path / "empty").write_text("# nobody yet\n")
    with pytest.raises(InvalidConfiguration, match="empty"):
        TrustedKeys(tmp_path / "empty")


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(config=st.dictionaries(st.text(), values, max_size=4), auc=numbers)
def test_the_canonical_form_is_one_whoever_reads_and_says_it_again(
    config: dict[str, object], auc: float
) -> None:
    manifest = msgspec.structs.replace(
        PUBLISHED.manifest,
        config=config,
        champion=Scores(rows=1, auc=float(auc), log_loss=None, accuracy=None),
    )
    form = canonical(manifest)
    assert canonical(msgspec.json.decode(form, type=Manifest)) == form
    shuffled = dict(reversed(list(config.items())))
    assert canonical(msgspec.structs.replace(manifest, config=shuffled)) == form
    assert json.loads(form) == json.loads(msgspec.json.encode(manifest))


def test_the_command_makes_lists_rotates_and_retires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_PATHS__HOME", str(tmp_path))

    def tidemill(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert json.loads(tidemill("keys", "--json"))["keys"] == []
    tidemill("keys", "make")
    tidemill("keys", "rotate")
    listed = json.loads(tidemill("keys", "--json"))
    first, second = listed["keys"]
    assert first["signs"]
    assert second["signs"]
    tidemill("keys", "retire", first["id"])
    (left,) = KeyFolder(tmp_path / "keys").listed()
    assert (left.id, left.public) == (second["id"], second["public_key"])
    assert Path(listed["trusted_file"]).read_text().count("ed25519:") == 1
    refused = subprocess.run(
        [sys.executable, "-m", "infra.command", "keys", "retire", second["id"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "tidemill keys rotate" in " ".join(refused.stderr.split())


def test_every_refusal_is_of_the_error_tree() -> None:
    assert issubclass(SignatureRefused, TidemillError)
    assert issubclass(SignerUnknown, TidemillError)
