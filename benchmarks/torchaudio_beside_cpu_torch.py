"""Loads torchaudio, whose published wheel is linked with CUDA, with a CPU build of PyTorch.

The wheel is linked with CUDA's runtime and with two libraries of PyTorch's CUDA build, which its
CPU kernels, including the transducer loss, never call. The runtime comes from a small package. The
two libraries are compiled here and contain only the six functions that the dynamic linker looks up.
The linker finds a loaded library by its name, so it is enough to load these first, and no
environment variable has to be set before Python starts.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from types import ModuleType

REMEDY = (
    "install the peers: make peers, or pip install -c constraints/peers.txt torch torchaudio "
    "nvidia-cuda-runtime numba warprnnt-numba"
)
"""Remedy if the packages are missing, which are in the `peers` extra."""

_CUDA_FUNCTIONS = (
    "aoti_torch_get_current_cuda_stream",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
    "torch_cuda_stream_synchronize",
    "torch_get_cuda_stream_from_pool",
    "torch_set_current_cuda_stream",
)
_STUBS = {
    "libc10_cuda.so": "",
    # If one is called nevertheless, the process ends instead of returning a wrong result.
    "libtorch_cuda.so": "#include <stdlib.h>\n"
    + "".join(f"int {name}(void) {{ abort(); }}\n" for name in _CUDA_FUNCTIONS),
}


def load_torchaudio() -> ModuleType:
    """Imports torchaudio, with stand-ins for CUDA's libraries where PyTorch has none.

    Raises:
        ImportError: If a package or a C compiler is missing; the message says what to install.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"PyTorch is missing; {REMEDY}") from error
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"torchaudio is missing; {REMEDY}")
    libraries = pathlib.Path(spec.submodule_search_locations[0]) / "lib"
    linked = b"".join(path.read_bytes() for path in sorted(libraries.glob("*torchaudio*.so")))
    if torch.version.cuda is None and b"libtorch_cuda.so" in linked:
        _load_cuda_runtime(linked)
        for name, source in _STUBS.items():
            ctypes.CDLL(str(_build_stub(name, source)), mode=ctypes.RTLD_GLOBAL)
    try:
        import torchaudio
        import torchaudio.functional
    except OSError as error:
        raise ImportError(
            f"torchaudio does not load beside torch {torch.__version__} ({error}); {REMEDY}"
        ) from error
    return torchaudio


def _load_cuda_runtime(linked: bytes) -> None:
    """Loads the CUDA runtime of the name that torchaudio's libraries ask for."""
    found = re.search(rb"libcudart\.so\.\d+", linked)
    if found is None:
        return
    name = found[0].decode()
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(pathlib.Path(place).rglob(name)):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return
    raise ImportError(f"torchaudio needs {name} (package nvidia-cuda-runtime); {REMEDY}")


def _build_stub(name: str, source: str) -> pathlib.Path:
    """Compiles a library once, into `$XDG_CACHE_HOME/maestro_jax/torchaudio_stubs`."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    directory = cache / "maestro_jax" / "torchaudio_stubs"
    target = directory / name
    if target.exists():
        return target
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ImportError("torchaudio beside a CPU build of PyTorch needs a C compiler (cc)")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        code = pathlib.Path(scratch) / "stub.c"
        code.write_text(source)
        built = pathlib.Path(scratch) / name
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(built), str(code)],
            check=True,
        )
        # Another process may be doing the same, so files are replaced as a whole.
        built.replace(target)
    return target
