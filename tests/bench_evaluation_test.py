"""Both sides of the benchmark of evaluations, on made-up data."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the extra parity is missing')

import plain_model  # noqa: E402
from evals_fakes import folder  # noqa: E402

from bench import (  # noqa: E402
  generation_speed,
  greedy_runs,
  mmlu_speed,
  shortcuts,
  torch_evaluation,
  torch_model,
)
from bench import passes as passes_lib  # noqa: E402
from me_jax import rebuild, trees  # noqa: E402
from me_jax.config import GraceConfig  # noqa: E402
from me_jax.data.request import EditRequest  # noqa: E402
from me_jax.edits import registry as registry_of_editors  # noqa: E402
from me_jax.evals import registry  # noqa: E402
from me_jax.evals.mmlu import Mmlu  # noqa: E402
from me_jax.models import language_model, load  # noqa: E402

_REPO = pathlib.Path(__file__).resolve().parent.parent
SUBJECT = 'global_facts'
ITEMS = 6


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """One subject of MMLU, and CommonsenseQA."""
  path = tmp_path_factory.mktemp('data')
  for split, count in (('dev', 5), ('test', ITEMS)):
    rows = [
      f'{split} {i * i}?,a{i},b{2 * i},c{3 * i},d{4 * i},{"ABCD"[i % 4]}\n'
      for i in range(count)
    ]
    file = path / 'mmlu' / split / f'{SUBJECT}_{split}.csv'
    file.parent.mkdir(parents=True)
    file.write_text(''.join(rows))
  (path / 'commonsenseqa').mkdir()
  for split, count in (('train', 8), ('dev', ITEMS)):
    records = [
      {
        'id': f'{split}{i}',
        'answerKey': 'ABCDE'[i % 5],
        'question': {
          'stem': f'{split} {i * i * i}?',
          'choices': [{'label': x, 'text': f'{x}{i}'} for x in 'ABCDE'],
        },
      }
      for i in range(count)
    ]
    file = path / 'commonsenseqa' / f'{split}_rand_split.jsonl'
    file.write_text(''.join(f'{json.dumps(r)}\n' for r in records))
  return path


@pytest.fixture(scope='module')
def small(tiny):
  """Two layers compile in half the time."""
  config = dataclasses.replace(tiny.config, num_layers=2, max_positions=2048)
  return language_model.language_model(
    config, load.init_params(config), tiny.tokenizer, name='small'
  )


@pytest.fixture(scope='module')
def passes(small, root):
  return passes_lib.Passes(small, sources=folder(root), is_chat=False, layer=1)


def build(model):
  leaves = trees.flatten(model.params)
  return torch_model.build_model(
    model.config, {path: np.asarray(leaf) for path, leaf in leaves.items()}
  )


@pytest.fixture(scope='module')
def torch_small(small):
  # Of no use for products this small, and slow where cores are busy.
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield build(small)
  torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def torch_other(small, torch_small):
  """The model with other weights in one place."""
  model = build(small)
  weight = model.model.layers[1].mlp.down_proj.weight
  noise = torch.randn(weight.shape, generator=torch.manual_seed(0))
  weight += 5 * noise * weight.std()
  return model


make_mmlu = lambda context: Mmlu(context=context, subjects=(SUBJECT,))
make_commonsenseqa = functools.partial(registry.make_task, 'commonsenseqa')


def test_text_score_counts_every_token(small, torch_small):
  ids = np.array(small.tokenizer.encode('What is this? Letter C'))
  logits = plain_model.logits(small.config, small.params, ids)
  logprobs = jax.nn.log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]
  assert torch_evaluation.text_score(
    torch_small, ids.tolist()
  ) == pytest.approx(-float(logprobs.sum()) / len(ids), rel=1e-5)


def test_greedy_text_and_its_end(small, torch_small):
  # With the answer as long as the text above: compiled once.
  prompt = small.tokenizer.encode('What is this?')
  expected = plain_model.greedy(small.config, small.params, prompt, 9)
  run = functools.partial(
    torch_evaluation.greedy, torch_small, prompt, max_new_tokens=9
  )
  assert run(eos_id=small.tokenizer.eos_id) == expected
  # Any token may be the end; it is kept.
  end = expected[3]
  assert run(eos_id=end) == expected[: expected.index(end) + 1]


def test_preference_is_the_distance_of_logits(small, torch_small, passes):
  prompt = small.tokenizer.encode('What is this?')
  # What follows does not matter.
  padded = np.array([*prompt] + [0] * 9)
  logits = plain_model.logits(small.config, small.params, padded)
  logits = np.asarray(logits)[len(prompt) - 1]
  other, best = np.argsort(logits)[-2:].tolist()
  expected = float(logits[best] - logits[other])
  assert expected > 0
  found = torch_evaluation.preference(torch_small, prompt, best, other)
  assert found == pytest.approx(expected, abs=1e-5)
  assert passes.gap(prompt, other, best) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
  ('a', 'b', 'expected'),
  [((1, 2), (1, 2, 3), None), ((1, 9), (1, 2, 3), 1), ((4,), (5,), 0)],
)
def test_first_difference(a, b, expected):
  assert greedy_runs.first_difference(a, b) == expected
  assert greedy_runs.first_difference(b, a) == expected


def test_nothing_is_compiled_in_a_timed_pass(small, root):
  passes = passes_lib.Passes(
    small, sources=folder(root), is_chat=False, layer=1
  )
  first, second = (
    passes.timed(make_mmlu, passes_lib.settings(), limit=3) for _ in range(2)
  )
  assert first.compile > first.seconds > first.prepare > 0
  assert second.compile == 0
  assert list(first.answers) == [item.id for item in first.items]
  assert first.answers == second.answers


def test_mmlu_equals_four_full_texts(passes, torch_small):
  timing = mmlu_speed.time_subject(
    passes, torch_small, SUBJECT, limit=None, torch_items=4, torch_first=True
  )
  assert (timing.items, timing.torch_items, timing.equal) == (ITEMS, 4, 4)
  assert timing.differences == ()
  assert timing.ratio == timing.torch / timing.ours > 0
  assert timing.tokens > 300
  assert SUBJECT in mmlu_speed.line(timing)


def test_mmlu_of_other_weights_differs(passes, torch_other):
  timing = mmlu_speed.time_subject(
    passes,
    torch_other,
    SUBJECT,
    limit=None,
    torch_items=None,
    torch_first=False,
  )
  assert timing.differences
  assert timing.equal + len(timing.differences) == ITEMS
  assert len(mmlu_speed.details(timing)) == len(timing.differences)


def test_differences_and_near_ties():
  found = mmlu_speed.compare(
    ['same', 'near', 'far', 'half'],
    [[1.0, 2.0], [1.0, 1.00001], [1.0, 2.0, 0.5], [1.0, 1.00001]],
    [[1.0, 9.0], [1.00001, 1.0], [0.5, 2.0, 1.0], [2.0, 1.0]],
  )
  assert [(d.doc_id, d.ours, d.torch, d.is_near_tie) for d in found] == [
    ('near', 'A', 'B', True),
    ('far', 'C', 'A', False),
    ('half', 'A', 'B', False),
  ]
  assert found[1].torch_gap == 0.5


def test_overall_weighs_subjects_by_their_items(passes, torch_small):
  timing = mmlu_speed.time_subject(
    passes, torch_small, SUBJECT, limit=2, torch_items=1, torch_first=False
  )
  parts = [
    dataclasses.replace(timing, items=10, torch_items=1, ours=1.0, torch=20.0),
    dataclasses.replace(timing, items=30, torch_items=9, ours=3.0, torch=40.0),
  ]
  total = mmlu_speed.overall(parts)
  assert (total.items, total.torch_items) == (40, 10)
  assert (total.ours, total.torch, total.ratio) == (2.5, 35.0, 14.0)


def test_generated_answers_equal_those_of_generate(passes, torch_small):
  timing = generation_speed.time_task(
    passes,
    torch_small,
    make_commonsenseqa,
    limit=None,
    torch_items=3,
    torch_first=False,
  )
  assert timing.items == ITEMS > 3
  assert timing.torch_items == timing.equal == timing.beginnings == 3
  assert timing.partings == () and timing.unexplained == []
  # Some of ours end when they are decided.
  assert 0 < timing.tokens < timing.torch_tokens <= 100


def test_generated_answers_of_other_weights_part(passes, torch_other):
  timing = generation_speed.time_task(
    passes,
    torch_other,
    make_commonsenseqa,
    limit=None,
    torch_items=None,
    torch_first=True,
  )
  assert timing.beginnings == ITEMS - len(timing.partings) < ITEMS
  assert all(p.gap > greedy_runs.NEAR_TIE for p in timing.partings)
  assert timing.differences and timing.unexplained == list(timing.differences)
  text = generation_speed.line(timing)
  assert text.count('READINGS DIFFER') == len(timing.differences)
  near = [dataclasses.replace(p, gap=1e-5) for p in timing.partings]
  explained = dataclasses.replace(timing, partings=tuple(near))
  assert explained.unexplained == []


def test_likelihoods_are_not_generated(passes, torch_small):
  with pytest.raises(ValueError, match='mmlu is told by likelihoods'):
    generation_speed.time_task(
      passes,
      torch_small,
      make_mmlu,
      limit=None,
      torch_items=None,
      torch_first=False,
    )


def check_shortcuts(timings, expected):
  assert [t.without for t in timings] == ['none', *expected]
  for timing in timings:
    assert timing.items == ITEMS
    assert timing.differences == ()
    assert timing.factor == timing.seconds / timing.taken
    assert timing.cpu_factor == timing.cpu / timing.taken_cpu > 0
  assert timings[0].factor == 1


def test_shortcuts_of_likelihoods_change_nothing(passes):
  timings = list(
    shortcuts.time_task(passes, make_mmlu, limit=None, with_all_off=True)
  )
  check_shortcuts(
    timings, ['shared_prefix', 'one_forward', 'lower_layers', 'all']
  )
  assert all(t.largest < 1e-6 for t in timings)


def test_shortcuts_of_generation_change_nothing(passes, monkeypatch):
  # Prefixes are no other than above, and their absence compiles long.
  chosen = [s for s in shortcuts.SHORTCUTS if s.name != 'shared_prefix']
  monkeypatch.setattr(shortcuts, 'SHORTCUTS', chosen)
  timings = list(
    shortcuts.time_task(
      passes, make_commonsenseqa, limit=None, with_all_off=False
    )
  )
  check_shortcuts(timings, ['early_stop', 'refill'])
  assert all(t.largest is None for t in timings)


def test_copies_change_nothing(small, root):
  """The codebook has the prompt of one item in it."""
  method = GraceConfig(layer=1, eps=1e-3)
  editor = registry_of_editors.make_editor(
    method, small, templates=(), factors={}
  )
  unedited = passes_lib.Passes(
    small, sources=folder(root), is_chat=False, layer=1
  )
  task = unedited.task(make_commonsenseqa, passes_lib.settings())
  prompt = task.request(task.items()[1]).prompt
  request = EditRequest(
    case_id='1',
    subject='train 343',
    prompt=small.tokenizer.decode(prompt).replace('train 343', '{}'),
    target_new=' no',
  )
  params = small.params
  _, state, _ = editor.edit(params, editor.init(params), [request])
  asked = passes_lib.Passes(
    small,
    sources=folder(root),
    is_chat=False,
    layer=1,
    edited=rebuild.EditedState(
      model=small,
      edit_step=1,
      num_edits=1,
      edit_batch_size=1,
      method='grace',
      fingerprint='edited',
      unedited='unedited',
      editor=editor,
      editor_state=state,
    ),
  )
  timings = list(
    shortcuts.time_task(
      asked, make_commonsenseqa, limit=None, with_all_off=False
    )
  )
  check_shortcuts(timings, ['copy_untouched'])
  config = passes_lib.settings()
  done = asked.timed(make_commonsenseqa, config, limit=None, is_edited=True)
  touched = [n for n, a in done.answers.items() if 'copied_from' not in a]
  assert touched == [task.items()[1].id]


def test_a_changed_answer_is_found(passes):
  config = passes_lib.settings()
  unedited = passes.timed(make_mmlu, config, limit=None)
  edited = passes.timed(make_mmlu, config, limit=None, is_edited=True)
  assert 1e-5 < shortcuts.largest_change(unedited, edited) < 1
  assert shortcuts.compare(passes, unedited, unedited) == []
  name = unedited.items[1].id
  other = dict(unedited.answers[name], filtered_resps={'oc': '?'})
  changed = dataclasses.replace(
    unedited, answers={**unedited.answers, name: other}
  )
  [difference] = shortcuts.compare(passes, unedited, changed)
  assert difference.doc_id == name
  assert difference.without == {'oc': '?'} and not difference.is_near_tie


def test_texts_that_part_far_apart_are_no_near_tie(passes):
  taken = passes.timed(make_commonsenseqa, passes_lib.settings(), limit=None)
  name = taken.items[0].id
  tokens = list(taken.tokens[name])
  tokens[1] = (tokens[1] + 1) % 256
  other = dict(taken.answers[name], filtered_resps={'oc': '?', 'clean': ''})
  changed = dataclasses.replace(
    taken,
    answers={**taken.answers, name: other},
    tokens={**taken.tokens, name: tokens},
  )
  [difference] = shortcuts.compare(passes, taken, changed)
  assert not difference.is_near_tie


def test_the_program_writes_what_it_prints(root, tmp_path):
  output = tmp_path / 'numbers.json'
  arguments = [
    '--part=mmlu',
    '--model=tiny',
    '--layer=1',
    f'--subjects={SUBJECT}',
    '--items=2',
    '--torch_items=1',
    f'--data_root={root}',
    f'--output={output}',
  ]
  done = subprocess.run(
    [sys.executable, '-m', 'bench.evaluation', *arguments],
    cwd=_REPO,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  content = json.loads(output.read_text())
  assert content['flags']['torch_items'] == 1
  assert content['versions']['model'] == 'tiny'
  assert [row['subject'] for row in content['rows']] == [SUBJECT, 'all']
  assert f'{content["rows"][0]["torch"]:.4f}' in done.stdout
