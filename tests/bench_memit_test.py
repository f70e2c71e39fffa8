"""The batched search against plain PyTorch: one fact after another, whole rows,
whole network."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from bench import memit_speed, torch_model, torch_rome  # noqa: E402
from me_jax import trees  # noqa: E402
from me_jax.config import MemitConfig  # noqa: E402
from me_jax.data.request import EditRequest  # noqa: E402
from me_jax.edits import batched_values, memit, rows  # noqa: E402
from me_jax.edits.second_moment_factor import Factor  # noqa: E402

CONFIG = MemitConfig(layers=(0, 1), v_num_grad_steps=10, v_weight_decay=0.1)
TEMPLATES = ('{}', 'So. {}', 'It is said. {}')
TEXTS = [
  ('Mount Fuji', 'In which country is {}?', 'Spain'),
  ('Ada', 'Who was {}', 'a poet'),
  ('Rome', 'What is {} in, then?', 'no'),
]


@pytest.fixture(scope='module')
def model(tiny):
  config = dataclasses.replace(tiny.config, num_layers=3)
  leaves = {
    path: leaf
    for path, leaf in trees.flatten(tiny.params).items()
    if not path.startswith('layers/3/')
  }
  return dataclasses.replace(
    tiny, config=config, params=trees.unflatten(leaves)
  )


@pytest.fixture(scope='module')
def requests(model):
  return [
    rows.build_rows(
      model.tokenizer,
      EditRequest(case_id=s, subject=s, prompt=p, target_new=t),
      TEMPLATES,
    )[0]
    for s, p, t in TEXTS
  ]


@pytest.fixture(autouse=True)
def one_thread():
  # Of no use for products this small, and slow where cores are busy.
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


def test_same_targets(model, requests):
  settings = memit.search_config(CONFIG)
  found = batched_values.find_targets(
    model.config,
    model.params,
    requests,
    layer=CONFIG.layers[-1],
    search_config=settings,
    batch_size=16,
  )
  leaves = trees.flatten(model.params)
  plain = torch_model.build_model(
    model.config, {path: np.asarray(leaf) for path, leaf in leaves.items()}
  )
  for ours, request in zip(found, requests, strict=True):
    start, delta, history = torch_rome.search(
      plain,
      request,
      module=plain.model.layers[CONFIG.layers[-1]],
      settings=settings,
    )
    np.testing.assert_allclose(ours.start, start, rtol=0, atol=1e-5)
    assert ours.search.num_evaluations == len(history)
    for name, values in zip(
      ('nll', 'kl', 'weight_decay'), history.T[1:], strict=True
    ):
      np.testing.assert_allclose(
        getattr(ours.search, name), values, rtol=1e-3, atol=2e-6, err_msg=name
      )
    # The first steps of Adam part where a gradient is rounding itself.
    difference = np.linalg.norm(ours.search.delta - delta)
    assert difference < 1e-3 * np.linalg.norm(delta)


def test_a_batch_is_timed_and_compared(model, requests):
  config = dataclasses.replace(CONFIG, early_stop_loss=-float('inf'))
  factors = dict.fromkeys(config.layers, Factor(np.eye(model.config.mlp_dim)))
  timing = memit_speed.time_batch(model, config, factors, requests)
  assert timing.facts == 3 and timing.search > 0 and timing.write > 0
  assert timing.tail_tokens <= timing.padded_tokens
  assert timing.temporary_mb > 0 and timing.peak_mb > timing.temporary_mb
  found = memit_speed.compare(model, config, factors, requests)
  assert found['loss_difference'] < 1e-3
  assert found['ratio'] == found['torch_search'] / found['ours']
