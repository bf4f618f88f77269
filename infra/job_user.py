"""The user of this machine that jobs run as, where they are not to read what the trainer alone may.

Model code is anybody's. As the trainer's own user it could read the keys that sign models; as another it
cannot, nor end the trainer, the warm process or trace either. A trainer needs to be root for that.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from msgspec import Struct

from schemas.errors import InvalidConfiguration


class JobUser(Struct, frozen=True, kw_only=True):
    """A user as the system knows him; `groups` are all that he is in."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    def become(self) -> None:
        """Give up what this process is for good; what it writes from now on nobody else reads."""
        os.setgroups(self.groups)
        os.setgid(self.gid)
        os.setuid(self.uid)
        os.umask(0o077)

    def give(self, folder: Path) -> None:
        """Make a folder that he may write to, in one that he may not. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chown(folder, self.uid, self.gid)

    def barred_from(self, folder: Path) -> Path | None:
        """What keeps him from reading a folder: it itself, or one above it; None if nothing does.

        What is not there yet bars nobody. Rights beyond owner, group and others are not looked at.
        """
        path = folder.resolve()
        for each in (*reversed(path.parents), path):
            try:
                status = each.stat()
            except FileNotFoundError:
                return None
            needed = stat.S_IROTH | stat.S_IXOTH if each == path else stat.S_IXOTH
            if self.uid == status.st_uid:
                needed <<= 6
            elif status.st_gid in self.groups:
                needed <<= 3
            if status.st_mode & needed != needed:
                return each
        return None


def job_user(name: str | None) -> JobUser | None:
    """The user that `trainer.job_user` names; None where it names none.

    Raises:
        InvalidConfiguration: there is no such user, he is root, or this process may not become another.
    """
    if name is None:
        return None
    try:
        known = pwd.getpwnam(name)
    except KeyError as error:
        raise InvalidConfiguration(
            f"trainer.job_user names {name!r}, and there is no such user here; make one: "
            f"useradd --system --create-home {name}"
        ) from error
    if known.pw_uid == 0:
        raise InvalidConfiguration("trainer.job_user is root, who may read everything; name another user")
    if os.geteuid() != 0:
        raise InvalidConfiguration(
            f"trainer.job_user is {name}, but only root may run jobs as another user; "
            "start the trainer as root, or unset trainer.job_user"
        )
    groups = tuple(os.getgrouplist(name, known.pw_gid))
    return JobUser(name=name, uid=known.pw_uid, gid=known.pw_gid, groups=groups, home=known.pw_dir)
