"""The latent search against plain PyTorch: whole rows, whole network."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from bench import rome_floor, torch_model, torch_rome  # noqa: E402
from me_jax import trees  # noqa: E402
from me_jax.config import RomeConfig  # noqa: E402
from me_jax.data.request import EditRequest  # noqa: E402
from me_jax.edits import rome, rows, values  # noqa: E402
from me_jax.edits.second_moment_factor import Factor  # noqa: E402

LAYER = 1
TEMPLATES = ('{}', 'So. {}', 'It is said. {}')
REQUEST = EditRequest(
  case_id='0',
  subject='Mount Fuji',
  prompt='In which country is {}?',
  target_new='Spain',
)


@pytest.fixture(scope='module')
def torch_tiny(tiny):
  leaves = trees.flatten(tiny.params)
  model = torch_model.build_model(
    tiny.config, {path: np.asarray(leaf) for path, leaf in leaves.items()}
  )
  # Of no use for products this small, and slow where cores are busy.
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield model
  torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def token_rows(tiny):
  return rows.build_rows(tiny.tokenizer, REQUEST, TEMPLATES)[0]


def search_both(tiny, torch_tiny, token_rows, **changes):
  """Our `Found` and PyTorch's `TorchEdit`."""
  config = RomeConfig(layer=LAYER, mom2_adjustment=False, **changes)
  settings = rome.search_config(config)
  prepared = values.prepare(
    tiny.config, tiny.params, token_rows, layer=LAYER, site='mlp/out'
  )
  ours = values.search(
    tiny.config,
    tiny.params,
    token_rows,
    prepared,
    layer=LAYER,
    search_config=settings,
  )
  theirs = torch_edit(torch_tiny, token_rows, **changes)
  return ours, theirs


def torch_edit(torch_tiny, token_rows, **changes):
  """PyTorch's alone."""
  config = RomeConfig(layer=LAYER, mom2_adjustment=False, **changes)
  return torch_rome.edit(
    torch_tiny, token_rows, layer=LAYER, settings=rome.search_config(config)
  )


def check_same(ours, theirs):
  n = int(ours.num_evaluations)
  assert n == len(theirs.loss)
  for name in ('nll', 'kl', 'weight_decay'):
    np.testing.assert_allclose(
      getattr(ours, name)[:n],
      getattr(theirs, name),
      rtol=1e-4,
      atol=1e-6,  # the divergence starts at 0
      err_msg=name,
    )
  difference = np.linalg.norm(ours.delta - theirs.delta)
  assert difference < 1e-4 * np.linalg.norm(theirs.delta)


def test_same_losses_and_delta_without_clamp(tiny, torch_tiny, token_rows):
  ours, theirs = search_both(
    tiny, torch_tiny, token_rows, clamp_norm_factor=1e6
  )
  assert not np.asarray(ours.projected).any()
  assert theirs.loss[-1] < theirs.loss[0]
  check_same(ours, theirs)


def test_same_losses_and_delta_with_clamp(tiny, torch_tiny, token_rows):
  ours, theirs = search_both(
    tiny, torch_tiny, token_rows, clamp_norm_factor=0.5, v_weight_decay=0.1
  )
  assert np.asarray(ours.projected).any()
  check_same(ours, theirs)


def test_same_early_stop(tiny, torch_tiny, token_rows):
  whole = torch_edit(torch_tiny, token_rows)
  # Between two losses far apart, so that rounding cannot move the stop.
  threshold = float(whole.loss[3:5].mean())
  assert whole.loss[:4].min() > threshold > whole.loss[4]
  ours, theirs = search_both(
    tiny, torch_tiny, token_rows, early_stop_loss=threshold
  )
  assert int(ours.num_evaluations) == 5
  check_same(ours, theirs)


def test_same_rank_one_change(tiny, torch_tiny, token_rows):
  f = tiny.config.mlp_dim
  rng = np.random.default_rng(0)
  a = rng.standard_normal((2 * f, f))
  chol = np.linalg.cholesky(a.T @ a / len(a))
  config = RomeConfig(layer=LAYER)
  change, _ = rome.edit_one(
    config,
    tiny.config,
    tiny.params,
    tiny.tokenizer,
    REQUEST,
    TEMPLATES,
    Factor(chol),
  )
  theirs = torch_rome.edit(
    torch_tiny,
    token_rows,
    layer=LAYER,
    settings=rome.search_config(config),
    chol=torch.from_numpy(chol),
  )
  np.testing.assert_allclose(change.left[:, 0], theirs.left, atol=1e-5)
  scale = np.abs(theirs.right).max()
  np.testing.assert_allclose(change.right[0], theirs.right, atol=1e-4 * scale)


def test_torch_model_is_left_as_it_was(torch_tiny, token_rows):
  first = torch_edit(torch_tiny, token_rows, v_num_grad_steps=2)
  second = torch_edit(torch_tiny, token_rows, v_num_grad_steps=2)
  np.testing.assert_array_equal(first.loss, second.loss)


def test_work_counted_by_hand(tiny, token_rows):
  c = dataclasses.replace(tiny.config, num_layers=LAYER + 2)
  # Three rows of 2 + 1 tokens at and after the lookup position 4, one target
  # each, and a row that ends there.
  small = token_rows._replace(
    lengths=np.array([7, 7, 7, 5]),
    lookups=np.array([4, 4, 4, 4]),
    target_weights=np.ones((3, 1), np.float32),
  )
  work = rome_floor.search_work(c, small, layer=LAYER, evaluations=1)
  d, f, kv = c.embed_dim, c.mlp_dim, c.num_kv_heads * c.head_dim
  per_token = 2 * (2 * d * d + 2 * d * kv + 3 * d * f)
  seen = 3 * (5 + 6 + 7) + 5
  attention = 2 * 2 * d * seen
  logits = 2 * 4 * d * c.vocab_size
  assert work.flops == 10 * per_token + attention + logits

  again = rome_floor.search_work(c, small, layer=LAYER, evaluations=2)
  among_tail = 3 * (1 + 2 + 3) + 1
  # Forward twice, backward once.
  assert again.flops == 3 * work.flops + 2 * 2 * d * among_tail


def test_floor_grows_with_the_work(tiny, token_rows):
  work = rome_floor.search_work(
    tiny.config, token_rows, layer=LAYER, evaluations=25
  )
  assert 0 < rome_floor.seconds(work) < 60
