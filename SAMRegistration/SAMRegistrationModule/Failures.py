"""What is known to go wrong with installations and devices: from a symptom in the log to a sentence that helps."""

import re
from collections.abc import Iterable

KNOWN_FAILURES = (
    (
        r"no kernel image is available|is not compatible with the current PyTorch installation|sm_\d+ is not compat",
        "This PyTorch was built for other GPUs than yours: press Repair to install the build for your GPU, or "
        'choose "cpu" under Preset.',
    ),
    (
        r"WinError 206|[Ff]ile ?name or extension is too long",
        "Paths on Windows became too long, so PyTorch is incomplete: install Slicer into a short folder such as "
        "C:\\Slicer and press Repair.",
    ),
    (
        r"WinError 126|WinError 1114|DLL load failed",
        "A library that PyTorch needs is missing on Windows: install the Microsoft Visual C++ Redistributable (x64), "
        "restart Slicer and press Check.",
    ),
    (
        r"compiled using NumPy 1|_ARRAY_API not found|numpy\.core\.multiarray failed to import",
        'This PyTorch needs NumPy 1 (as on Macs with Intel processors): install "numpy<2" in the Python console with '
        'slicer.util.pip_install("numpy<2"), and restart Slicer.',
    ),
    (
        r"CUDA driver version is insufficient|driver on your system is too old",
        'The NVIDIA driver is older than this PyTorch: update the driver, or choose "cpu" under Preset.',
    ),
    (
        r"[Cc][Uu][Dd][Nn][Nn].*(mismatch|incompatib|version)|CUDNN_STATUS|libcudnn",
        "Another cuDNN on this computer stands in the way of PyTorch's own: remove CUDA folders from PATH and "
        'LD_LIBRARY_PATH and restart Slicer, or choose "cpu" under Preset.',
    ),
    (
        r"CUDA out of memory|OutOfMemoryError|memory ran out|[Nn]ot enough memory|Unable to allocate|std::bad_alloc",
        "Memory ran out: press Free memory, close other programs, crop the volumes, take a lighter preset, or choose "
        '"cpu" under Preset.',
    ),
    (
        r"killed, as happens when memory runs out|exit status 137|signal 9\b|^Killed$",
        "The system ended the worker, most likely because memory ran out: crop the volumes or take a lighter preset.",
    ),
    (
        r"ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED|certificate verify failed|Tunnel connection failed",
        "A proxy or firewall stands in the way of the download: set HTTPS_PROXY before Slicer starts, or download the "
        "wheels elsewhere and use Install from folder.",
    ),
    (
        r"[Nn]ame resolution|getaddrinfo failed|Failed to establish a new connection|Connection (refused|timed out)"
        r"|Network is unreachable|ReadTimeoutError",
        "There is no network: connect this computer, or download the wheels elsewhere and use Install from folder.",
    ),
    (
        r"No matching distribution found|Could not find a version that satisfies",
        "There is no wheel for this Slicer and computer at that place: check that the folder holds wheels for the "
        "Python of this Slicer, or press Install with a network.",
    ),
    (
        r"No space left on device|disk is full|Errno 28",
        "The disk is full: PyTorch needs about 5 GB, the temporary folder some times the size of the volumes. Free "
        "some space and try again.",
    ),
    (
        r"Permission denied|Access is denied|Errno 13|WinError 5\b",
        "Slicer may not write into its own folder: install Slicer for your user only, or start it once as "
        "administrator to install.",
    ),
    (
        r"partially initialized module|module 'torch' has no attribute|cannot import name '\w+' from 'torch"
        r"|No module named 'torch\._C'|libtorch\w*\.(so|dylib).*(cannot open|not loaded)|half installed",
        "PyTorch is only half installed: press Repair.",
    ),
    (
        r"No module named '?(torch|safetensors|SimpleITK|numpy)\b|packages are missing",
        "Something that the worker needs is not installed: press Install.",
    ),
    (
        r"incompatible factory load|ITK_AUTOLOAD_PATH|itk::ERROR: .*[Ff]actory",
        "Libraries of Slicer were loaded into the worker: restart Slicer without ITK_AUTOLOAD_PATH.",
    ),
    (
        r"free\(\): invalid pointer|Segmentation fault|signal 11\b|exit status -?1073741819",
        'A native library crashed in the worker, not in Slicer: press Repair; if it stays, choose "cpu" under Preset '
        "and report it with Copy log.",
    ),
    (
        r"restart.*(required|needed|Slicer)",
        "Something in use was replaced: save the scene and restart Slicer once.",
    ),
)
"""Pairs of a regular expression and its sentence; the first that fits counts."""


LOOKED_AT = 40
"""Lines at the end of the log; what is older belongs to another failure."""


def adviceFor(lines: "Iterable[str]") -> "str | None":
    """The sentence for what some lines tell, or None if nothing known is in them."""
    text = "\n".join(lines)
    for symptom, sentence in KNOWN_FAILURES:
        if re.search(symptom, text, flags=re.MULTILINE):
            return sentence
    return None


def adviceOn(message: str, hint: "str | None", kind: str, log: "list[str]") -> "str | None":
    """What to do about an error of the worker: by its own words, else by the log, else by its hint.

    The log is only asked about errors that the worker did not expect: it may tell of older ones.
    """
    advice = adviceFor([message, hint or ""])
    if advice is None and kind in ("internal", "worker-died"):
        advice = adviceFor(log[-LOOKED_AT:])
    return advice or hint
