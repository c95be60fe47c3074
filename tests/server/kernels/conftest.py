"""The compiled kernels for tests: each set of them that this processor runs."""

from collections.abc import Iterator

import pytest
import torch

from server.kernels import operators


@pytest.fixture(scope="module", params=["AMX-BF16", "AVX512-BF16", "AVX2"])
def native(request: pytest.FixtureRequest) -> Iterator[str]:
    if not operators.has_native():
        pytest.skip("no compiled kernels for this processor (AVX2)")
    torch.ops.lorry.use_instructions(request.param)
    if torch.ops.lorry.instructions() != request.param:
        torch.ops.lorry.use_instructions("")
        pytest.skip(f"a processor without {request.param}")
    yield request.param
    torch.ops.lorry.use_instructions("")
