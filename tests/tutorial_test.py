"""The tutorial's code, block after block, as a reader runs it."""

import pathlib
import re

import numpy as np
import pytest

_TUTORIAL = pathlib.Path(__file__).parent.parent / 'docs' / 'tutorial.md'


@pytest.mark.model
def test_every_block_runs(smollm2, capsys):
  del smollm2  # Skips where the weights are not at hand.
  pytest.importorskip('matplotlib')
  blocks = re.findall(
    r'^```python\n(.*?)^```', _TUTORIAL.read_text(), re.M | re.S
  )
  assert len(blocks) == 7
  names = {}
  for block in blocks:
    exec(compile(block, str(_TUTORIAL), 'exec'), names)
  said = capsys.readouterr().out
  asked, other = (line.split('|') for line in said.splitlines()[:2])
  assert 'Paris' in asked[1] and 'Rome' in asked[2]
  assert 'Rome' in other[1]
  assert np.isclose(
    names['drift'].rel_fro, names['info']['relative_change_norm'], rtol=1e-4
  )
  assert names['size'] < 20_000
  assert names['perplexity']['edited'] > 1
  assert (names['directory'] / 'search.png').stat().st_size > 5_000
