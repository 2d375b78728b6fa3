"""Small ICC profiles, as bytes: the specification is ICC.1:2022."""

import struct

import numpy as np

SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# The colorants of Display P3, adapted to D50, as Apple's profile has them.
P3_COLORANTS = {"r": (0.51512, 0.24120, -0.00105), "g": (0.29198, 0.69225, 0.04189), "b": (0.15710, 0.06657, 0.78407)}
# Those of sRGB, in which profiles differ by a few hundred-thousandths.
SRGB_COLORANTS = {"r": (0.43607, 0.22249, 0.01392), "g": (0.38515, 0.71687, 0.09708), "b": (0.14307, 0.06061, 0.71410)}
D50 = (0.9642, 1.0, 0.8249)


def display_p3():
    """Display P3: the primaries of DCI-P3, and the curve of sRGB."""
    return rgb(P3_COLORANTS)


def rgb(colorants):
    """A profile with these colorants and the curve of sRGB."""
    tags = {f"{channel}XYZ": xyz(colorant) for channel, colorant in colorants.items()}
    return profile("RGB ", tags | {f"{channel}TRC": curve(*SRGB_CURVE) for channel in "rgb"})


def grey(gamma):
    """A grey profile: luminance is the value to the power of gamma."""
    return profile("GRAY", {"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)})


def cmyk(lab):
    """A CMYK profile, linear between the 16 corners. lab: (c, m, y, k) of zeros and ones -> L*, a*, b*."""
    corners = [lab(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    values = [np.round((L * 2.55, a + 128, b + 128)).astype(np.uint8).tobytes() for L, a, b in corners]
    matrix = struct.pack(">9i", *(65536 * (n in (0, 4, 8)) for n in range(9)))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + 4 * ramp + b"".join(values) + 3 * ramp
    return profile("CMYK", {"A2B0": table}, b"prtr", b"Lab ")


def xyz(values):
    return b"XYZ " + bytes(4) + fixed(values)


def curve(*parameters):
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(parameters)


def fixed(values):
    """Numbers as signed 15.16 bits."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(space, tags, kind=b"mntr", connection=b"XYZ "):
    """A whole profile of version 4 (2 for tables of 8 bits)."""
    text = (
        b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + "x".encode("utf-16-be") + bytes(2)
    )
    tags = {"desc": text, "cprt": text, "wtpt": xyz(D50), **tags}
    start, index, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        index += name.encode() + struct.pack(">II", start + len(body), len(content))
        body += content
    size = struct.pack(">I", start + len(body))
    header = size + bytes(4) + b"\x04\x20\0\0" + kind + space.encode() + connection + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + fixed(D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + index + body
