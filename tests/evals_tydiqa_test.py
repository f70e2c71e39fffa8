import dataclasses
import hashlib
import json
import random

import pytest
from evals_fakes import CharTokenizer, folder

from me_jax.config import EvalConfig
from me_jax.evals import tydiqa, tydiqa_data
from me_jax.evals.task import Item, TaskContext
from me_jax.evals.tydiqa_languages import LANGUAGES

PROFILES = ('oc-2023-12', 'oc-2024-01')
SMALL = {('english',): 2, ('finnish',): 2, ('japanese', 'thai'): 3}
SIZES = {'english': 2, 'finnish': 2, 'japanese': 2, 'thai': 1}


def _context(root, profile='oc-2023-12', is_chat=False):
  return TaskContext(
    sources=folder(root),
    tokenizer=CharTokenizer(),
    settings=EvalConfig(profile=profile),
    is_chat=is_chat,
  )


def _item(answers, language='english', passage='P.', question='Q?'):
  return Item(
    id='0',
    group=language,
    fields={'passage': passage, 'question': question, 'answers': answers},
  )


def _record(i=0, **changes):
  return {
    'passage_text': f'P{i}.',
    'question_text': f'Q{i}?',
    'answers': [{'text': 'x'}, {'text': 'y'}, {'text': 'x'}],
    **changes,
  }


def _write(root, name, records):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


@pytest.fixture
def root(tmp_path):
  for name, size in SIZES.items():
    _write(
      tmp_path,
      f'tydiqa/dev/{name}-dev.jsonl',
      [_record(i) for i in range(size)],
    )
  return tmp_path


def _vectors(spec_dir):
  return json.loads((spec_dir / 'benchmark_vectors.json').read_text())


@pytest.mark.parametrize('is_chat', [False, True])
def test_prompts_equal_the_vectors(spec_dir, tmp_path, is_chat):
  task = tydiqa.tydiqa(_context(tmp_path, is_chat=is_chat))
  cases = {
    v['task'].removeprefix('tydiqa/'): v
    for v in _vectors(spec_dir)['prompts']
    if v['task'].startswith('tydiqa/')
  }
  assert list(cases) == list(LANGUAGES) == list(task.macro_over)
  for language, case in cases.items():
    fields = case['fields']
    item = _item(
      fields['answer'],
      language,
      fields['passage_text'],
      fields['question_text'],
    )
    text = task.prompt(item, task.fewshot(item))
    assert text == case['prompt'] and len(text) == case['chars']
    assert hashlib.sha256(text.encode()).hexdigest() == case['sha256']


def test_marks_equal_the_vectors(spec_dir, tmp_path):
  cases = _vectors(spec_dir)['tydiqa']
  assert cases
  task = tydiqa.tydiqa(_context(tmp_path))
  for text, answers, exact_match, f1 in cases:
    metrics = task.score(_item(answers), {'resps': [text]})['metrics']
    assert 100 * metrics['exact_match'] == exact_match, text
    assert 100 * metrics['f1'] == f1, text


@pytest.mark.parametrize(
  ('text', 'answer', 'language', 'oc', 'clean'),
  [
    # f1 and exact match of each reading
    ('Kendrick Lamar', 'Kendrick Lamar', 'english', (0, 0), (1, 1)),
    ('3.5 million', '3.7 million', 'english', (1, 1), (0.5, 0)),
    ('3,5 million', '3,5 Million', 'finnish', (1, 1), (1, 1)),
    ('Москва', 'Москва', 'russian', (0, 0), (1, 1)),
    ('一九九〇年', '一九九一年', 'japanese', (0, 0), (0.8, 0)),
    ('一 九九〇年', '一九九〇年', 'japanese', (0, 0), (1, 0)),
    ('กรุงเทพ', 'กรุงเทพ', 'thai', (1, 1), (1, 1)),
    ('一九九〇年', '一九九一年', 'korean', (0, 0), (0, 0)),
    ('\nParis', 'Paris', 'english', (0, 0), (0, 0)),
    ('a, b', 'a, b', 'english', (0, 1), (1, 1)),
  ],
)
def test_both_readings(tmp_path, text, answer, language, oc, clean):
  task = tydiqa.tydiqa(_context(tmp_path))
  score = task.score(_item([answer], language), {'resps': [text]})
  metrics = score['metrics']
  assert (metrics['f1'], metrics['exact_match']) == pytest.approx(oc)
  assert (
    metrics['f1_clean'],
    metrics['exact_match_clean'],
  ) == pytest.approx(clean)
  line = text.partition('\n')[0].lower()
  assert score['filtered_resps'] == {'oc': line, 'clean': line}


def test_the_best_answer_counts_for_each_mark_alone(tmp_path):
  task = tydiqa.tydiqa(_context(tmp_path))
  item = _item(['the', 'a b c'])
  score = task.score(item, {'resps': ['a']})
  assert score['metrics']['exact_match'] == 1 and score['metrics']['f1'] == 0
  score = task.score(item, {'resps': ['b c d']})
  assert score['metrics']['exact_match'] == 0
  assert score['metrics']['f1'] == pytest.approx(0.8)
  assert score['target'] == 'the | a b c'


@pytest.mark.parametrize('is_chat', [False, True])
@pytest.mark.parametrize('profile', PROFILES)
def test_a_decided_text_never_changes_its_scores(root, profile, is_chat):
  task = tydiqa.tydiqa(_context(root, profile, is_chat), SMALL)
  item = _item(['x 3.5', 'The Σ'])
  decided = task.request(item).decided
  read = lambda text: task.score(item, {'resps': [text]})
  pieces = ['x', '3.5', '.', ',', ' ', '\n', 'The', 'Σ', '[INST', ']', 'ก็']
  rng = random.Random(0)
  fired = 0
  for _ in range(1500):
    text = ''.join(rng.choices(pieces, k=8))
    end = next((e for e in range(len(text) + 1) if decided(text[:e])), None)
    if end is not None:
      fired += 1
      tail = ''.join(rng.choices(pieces, k=4))
      scores = [read(t) for t in (text[:end], text, text[:end] + tail)]
      assert scores[0] == scores[1] == scores[2], repr(text)
  assert fired > 500


def test_a_full_stop_does_not_end_an_answer(root):
  task = tydiqa.tydiqa(_context(root), SMALL)
  request = task.request(task.items()[0])
  texts = ('', '3.', '3.5, or', '3.5\n', '\n')
  assert [request.decided(t) for t in texts] == [False] * 3 + [True] * 2
  assert request.max_new_tokens == 100


def test_items_of_all_languages(root):
  items = tydiqa.tydiqa(_context(root), SMALL).items()
  assert [item.id for item in items] == [
    f'{name}/{i}' for name, size in SIZES.items() for i in range(size)
  ]
  assert items[1].group == 'english'
  assert items[1].fields == {
    'passage': 'P1.',
    'question': 'Q1?',
    'answers': ['x', 'y'],
  }


def test_the_counts_are_opencompass_s():
  assert sum(tydiqa_data.COUNTS.values()) == 6322
  official = [tydiqa_data.COUNTS[(name,)] for name in tydiqa_data.OFFICIAL]
  assert len(official) == 9 and sum(official) == 5077


def test_other_counts_are_refused(root):
  with pytest.raises(ValueError) as info:
    tydiqa_data.read_items(
      folder(root), {**SMALL, ('english',): 440, ('japanese', 'thai'): 4}
    )
  assert (
    'expected 440 in english, found 2; 4 in japanese and thai, found 3'
    in str(info.value)
  )


def test_all_missing_languages_are_named(root):
  with pytest.raises(FileNotFoundError) as info:
    tydiqa.tydiqa(_context(root)).items()
  message = str(info.value)
  for name in LANGUAGES:
    named = f'tydiqa/dev/{name}-dev.jsonl' in message
    assert named == (name not in SIZES), name
  assert 'needs 11 files' in message and 'the task tydiqa_goldp' in message


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'passage_text': 1}, "'passage_text' must be str"),
    ({'answers': []}, 'at least one answer'),
    ({'answers': ['x']}, 'expected answers with a text'),
    ({'answers': [{'text': None}]}, "'text' must be str"),
    ({'answers': {'text': ['x']}}, "'answers' must be list"),
  ],
)
def test_damaged_records_are_named(root, changes, message):
  file = 'tydiqa/dev/finnish-dev.jsonl'
  _write(root, file, [_record(), _record(**changes)])
  with pytest.raises(ValueError, match=message) as info:
    tydiqa_data.read_items(folder(root), SMALL)
  assert 'finnish-dev.jsonl: record 1' in str(info.value)


def _samples(task, texts):
  samples = []
  for item, text in zip(task.items(), texts, strict=True):
    answer = {'resps': [text], 'nonfinite': False}
    samples.append({**answer, 'group': item.group, **task.score(item, answer)})
  return samples


def test_the_headline_is_the_mean_over_languages(root):
  task = tydiqa.tydiqa(_context(root), SMALL)
  # English 1 of 2, Finnish 2 of 2, Japanese 0 of 2, Thai 1 of 1.
  texts = ['x', '', 'x', 'Y', 'z', '\nx', 'y']
  samples = _samples(task, texts)
  metrics = task.aggregate(samples, complete=True)
  values = {m.name: m.value for m in metrics}
  assert metrics[0].name == 'f1' and metrics[0].n == 7
  assert values['f1'] == pytest.approx(100 * (0.5 + 1 + 0 + 1) / 4)
  assert values['exact_match_clean'] == values['f1']
  assert values['f1_finnish'] == 100 and values['f1_japanese'] == 0
  assert values['predicted_empty'] == pytest.approx(200 / 7)
  with pytest.raises(ValueError, match='1 of 4 groups: thai'):
    task.aggregate(samples[:-1], complete=True)
  names = [m.name for m in task.aggregate(samples[:-1], complete=False)]
  assert names[0] == 'f1_of_3_groups'


def test_the_official_questions(data_root):
  task = tydiqa.tydiqa_goldp(_context(data_root))
  items = task.items()
  assert task.name == 'tydiqa_goldp' and len(items) == 900
  assert len({item.id for item in items}) == 900
  assert [items[100 * i].group for i in range(9)] == list(task.macro_over)
  assert all(item.id.startswith(f'{item.group}-') for item in items)
  english = next(item for item in items if item.group == 'english')
  text = task.prompt(english, ())
  assert text.startswith(
    'Answer the following question based on the information in the given '
    f'passage.\n\nPassage:{english.fields["passage"][:20]}'
  )
  assert text.endswith(f'\nQuestion: {english.fields["question"]}\nAnswer: ')


def test_a_missing_sample_of_a_hundred_is_named(data_root, tmp_path):
  name = 'tydiqa_goldp/arabic-dev_100.jsonl'
  records = (data_root / name).read_text().split('\n')[:-1]
  _write(tmp_path, name, map(json.loads, records))
  with pytest.raises(FileNotFoundError, match='goldp/bengali-dev_100.jsonl'):
    tydiqa_data.read_goldp_items(folder(tmp_path))


def _hub_rows(data_root):
  rows = []
  for name in tydiqa_data.OFFICIAL:
    path = data_root / 'tydiqa_goldp' / f'{name}-dev_100.jsonl'
    for record in map(json.loads, path.read_text().split('\n')[:-1]):
      answers = {
        key: [a[key] for a in record['answers']]
        for key in ('text', 'answer_start')
      }
      row = {k: record[k] for k in ('id', 'title', 'context', 'question')}
      rows.append({**row, 'answers': answers})
  random.Random(0).shuffle(rows)
  return rows


def test_hub_rows_become_the_files(data_root, tmp_path, monkeypatch):
  rows = _hub_rows(data_root)
  table = tydiqa_data.hub_table('swahili')
  assert (table.config, table.split) == ('secondary_task', 'validation')
  with pytest.raises(ValueError, match='499 questions in swahili, found 100'):
    table.to_text(rows)
  # As if a hundred were all.
  sizes = {
    name: dataclasses.replace(LANGUAGES[name], official=100)
    for name in tydiqa_data.OFFICIAL
  }
  monkeypatch.setattr(tydiqa_data, 'LANGUAGES', sizes)
  (tmp_path / 'tydiqa_goldp').mkdir()
  for name in tydiqa_data.OFFICIAL:
    text = tydiqa_data.hub_table(name).to_text(rows)
    (tmp_path / 'tydiqa_goldp' / f'{name}-dev.jsonl').write_text(text)
  by_id = lambda root: sorted(
    tydiqa_data.read_goldp_items(folder(root)), key=lambda item: item.id
  )
  assert by_id(tmp_path) == by_id(data_root)
