"""Which joint of well-known skeletons is which of SMPL's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from layersync.core.errors import InputError, nearest
from layersync.core.paths import expand
from layersync.core.recipe_reading import read_yaml
from layersync.modalities.motion.skeleton import INDEX

OWN_ENDINGS = (".yaml", ".yml")
_NAMESPACES = {re.compile(r"(.*:)?mixamorig\d*[:_]?(?=[A-Z])"): "mixamorig:", re.compile(r".*:"): ""}
"""What stands before the name of each joint of an export, and what presets have there."""
REQUIRED = ("pelvis", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head")


@dataclass(frozen=True)
class Preset:
    """Which joint of a family of skeletons is which of SMPL's.

    ``axes``: for each of SMPL's joints, the source's local axes that point left, up and forward in T-pose, such as
    ``"-y+x+z"``; empty where they are to be solved.
    """

    name: str
    joints: Mapping[str, str]
    axes: Mapping[str, str] = field(default_factory=dict)

    def matched(self, names: Sequence[str]) -> dict[int, int] | None:
        """SMPL's joint numbers to those of a skeleton with joint ``names``; ``None`` when a needed one is missing.

        A namespace that all joints share, ``mixamorig1:`` or ``Character1:``, makes no difference.
        """
        for known in (names, _without_namespace(names)):
            found = {INDEX[smpl]: known.index(name) for smpl, name in self.joints.items() if name in known}
            if all(INDEX[joint] in found for joint in REQUIRED):
                return found
        return None


def _without_namespace(names: Sequence[str]) -> Sequence[str]:
    for pattern, instead in _NAMESPACES.items():
        if all(map(pattern.match, names)):
            return [pattern.sub(instead, name, count=1) for name in names]
    return names


def _two_sided(
    left: Mapping[str, str], middle: Mapping[str, str], sides: tuple[str, str], prefix: str = ""
) -> dict[str, str]:
    joints = {smpl: prefix + name for smpl, name in middle.items()}
    for side, mark in zip(("left", "right"), sides, strict=True):
        joints |= {f"{side}_{smpl}": prefix + name.replace("*", mark) for smpl, name in left.items()}
    return joints


_LIMBS = {
    "hip": "*UpLeg", "knee": "*Leg", "ankle": "*Foot", "foot": "*ToeBase", "collar": "*Shoulder", "shoulder": "*Arm",
    "elbow": "*ForeArm", "wrist": "*Hand",
}  # fmt: skip
_TORSO = {"pelvis": "Hips", "spine1": "Spine", "spine2": "Spine1", "spine3": "Spine2", "neck": "Neck", "head": "Head"}
_SIDES = ("Left", "Right")

_BANDAI_NAMCO_AXES = (
    {"pelvis": "-y+x+z", "left_hip": "+y-x+z", "left_knee": "+y-x+z", "right_hip": "+y+x-z", "right_knee": "+y+x-z"}
    | dict.fromkeys(("spine1", "spine2", "neck", "head"), "+z+x+y")
    | dict.fromkeys(("left_ankle", "left_foot"), "+y+z+x")
    | dict.fromkeys(("right_ankle", "right_foot"), "+y-z-x")
    | dict.fromkeys(("left_collar", "left_shoulder", "left_elbow", "left_wrist"), "+x+y+z")
    | dict.fromkeys(("right_collar", "right_shoulder", "right_elbow", "right_wrist"), "+x-y-z")
)
"""Every bone lies along local X, towards the child on the left side and away from it on the right."""

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "bandai-namco",
            _two_sided(
                {
                    "hip": "UpperLeg_*", "knee": "LowerLeg_*", "ankle": "Foot_*", "foot": "Toes_*",
                    "collar": "Shoulder_*", "shoulder": "UpperArm_*", "elbow": "LowerArm_*", "wrist": "Hand_*",
                },
                {"pelvis": "Hips", "spine1": "Spine", "spine2": "Chest", "neck": "Neck", "head": "Head"},
                ("L", "R"),
            ),
            _BANDAI_NAMCO_AXES,
        ),
        Preset("mixamo", _two_sided(_LIMBS, _TORSO, _SIDES, "mixamorig:")),
        Preset(
            "cmu",
            _two_sided(_LIMBS, _TORSO | {"spine1": "LowerBack", "spine2": "Spine", "spine3": "Spine1"}, _SIDES),
        ),
        Preset("lafan1", _two_sided(_LIMBS | {"foot": "*Toe"}, _TORSO, _SIDES)),
        Preset("sfu", _two_sided(_LIMBS, _TORSO, _SIDES)),
        Preset(
            "deepmimic",
            _two_sided(
                {
                    "hip": "*_hip", "knee": "*_knee", "ankle": "*_ankle", "shoulder": "*_shoulder", "elbow": "*_elbow",
                    "wrist": "*_wrist",
                },
                {"pelvis": "root", "spine2": "chest", "neck": "neck", "head": "head"},
                ("left", "right"),
            ),
        ),
    )
}  # fmt: skip


def read_preset(source: str) -> Preset:
    """The user's own: a YAML file of SMPL's joints and what files call them.

    Raises :class:`InputError` for what is no such file, a joint that SMPL does not have, one of the files' that stands
    for two, and without one of :data:`REQUIRED`.
    """
    try:
        text = expand(source, "data.skeleton").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.skeleton: {source} cannot be read as text ({error})") from None
    joints = read_yaml(text, f"data.skeleton: {source}", "a skeleton is a mapping of joints to joints")
    for smpl, name in joints.items():
        if smpl not in INDEX:
            raise InputError(f"data.skeleton: {source}: SMPL has no joint {smpl!r}; {nearest(str(smpl), INDEX)}")
        if not isinstance(name, str):
            raise InputError(f"data.skeleton: {source}: {smpl} is {name!r}; the name of a joint is wanted")
    name, count = Counter(joints.values()).most_common(1)[0] if joints else ("", 0)
    if count > 1:
        raise InputError(f"data.skeleton: {source}: {name!r} stands for {count} joints of SMPL's")
    if missing := [joint for joint in REQUIRED if joint not in joints]:
        raise InputError(f"data.skeleton: {source}: lacks {', '.join(missing)}, which every skeleton needs")
    return Preset(source, joints)


def choose_preset(names: Sequence[str], wanted: str | Preset = "auto", where: str = "") -> Preset:
    """The preset that knows most joints of a skeleton, or the one that is ``wanted``: a name, or the user's own.

    Raises :class:`InputError` when none fits it; the user's own fits where the skeleton has all of its joints.
    """
    if isinstance(wanted, Preset):
        spelt = (set(names), set(_without_namespace(names)))
        if missing := min(([name for name in wanted.joints.values() if name not in known] for known in spelt), key=len):
            raise InputError(f"{where}: has no joint {missing[0]!r} of {wanted.name}; {nearest(missing[0], names)}")
        return wanted
    candidates = list(PRESETS.values()) if wanted == "auto" else [PRESETS[wanted]]
    fitting = [(len(found), preset) for preset in candidates if (found := preset.matched(names)) is not None]
    if not fitting:
        raise InputError(
            f"{where}: skeleton {wanted!r} does not know these joints: {', '.join(names[:8])} ...; "
            f"presets: {', '.join(PRESETS)}; data.skeleton also takes a YAML file of SMPL's joints and these"
        )
    return max(fitting, key=lambda pair: pair[0])[1]
