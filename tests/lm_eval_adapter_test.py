import dataclasses
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from me_jax.data.sources import DataSources
from me_jax.evals.commonsenseqa import LETTERS
from me_jax.evals.commonsenseqa_cloze import commonsenseqa_cloze
from me_jax.evals.task import TaskContext
from me_jax.generation import LlamaPredictor
from me_jax.models import convert
from me_jax.models.tokenizer import FastTokenizer, byte_tokenizer
from me_jax.typing import (
  GenerateRequest,
  GenerateResult,
  ModelState,
  ScoreRequest,
)

lm_eval = pytest.importorskip(
  'lm_eval', reason='needs the package lm_eval (extra lm-eval)'
)
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from me_jax.lm_eval_adapter import MeJaxLM  # noqa: E402

TOLERANCE = 1e-4  # sums of some float32 log-probabilities
EOS = 256
GREEDY = {'until': [], 'do_sample': False, 'max_gen_toks': 4}


class Recorder:
  """A `Predictor` that keeps what it was asked."""

  def __init__(self, predictor):
    self._predictor = predictor
    self.asked = []

  def score(self, state, requests):
    self.asked.extend(requests)
    return self._predictor.score(state, requests)

  def generate(self, state, requests, *, skip=()):
    self.asked.extend(requests)
    return self._predictor.generate(state, requests, skip=skip)


class Scripted:
  """A `Predictor` that answers with given tokens, the last request first."""

  def __init__(self, tokenizer, outputs):
    self._tokenizer = tokenizer
    self._outputs = outputs

  def score(self, state, requests):
    raise NotImplementedError

  def generate(self, state, requests, *, skip=()):
    assert not skip
    for i in reversed(range(len(requests))):
      yield (
        i,
        GenerateResult(
          tokens=np.array(self._outputs[i], np.int32),
          text=self._tokenizer.decode(self._outputs[i]),
          stop_reason='length',
        ),
      )


@pytest.fixture(scope='module')
def small(tiny):
  """The tiny model without its upper half: quicker to compile."""
  layers = {name: tiny.params['layers'][name] for name in ('0', '1')}
  return dataclasses.replace(
    tiny,
    config=dataclasses.replace(tiny.config, num_layers=2),
    params={**tiny.params, 'layers': layers},
  )


@pytest.fixture(scope='module')
def predictor(small):
  return LlamaPredictor(small.config, small.tokenizer)


@pytest.fixture
def recorder(predictor):
  return Recorder(predictor)


@pytest.fixture
def lm(small, recorder):
  return MeJaxLM(
    recorder, ModelState(small.params), small.tokenizer, max_length=48
  )


def _requests(kind, *arguments):
  return [
    Instance(request_type=kind, doc={}, arguments=a, idx=i)
    for i, a in enumerate(arguments)
  ]


def _score(lm, *pairs):
  return lm.loglikelihood(_requests('loglikelihood', *pairs), disable_tqdm=True)


def _generate(lm, *pairs):
  return lm.generate_until(
    _requests('generate_until', *pairs), disable_tqdm=True
  )


def _sum(predictor, state, context, continuation):
  request = ScoreRequest(
    context=tuple(context), continuations=(tuple(continuation),)
  )
  [(_, result)] = predictor.score(state, [request])
  return float(np.sum(result.logprobs[0]))


def _ids(text):
  return byte_tokenizer().encode(text)


def test_choices_share_one_request_and_keep_their_order(lm, recorder):
  pairs = [
    ('The sky is', ' blue'),
    ('Grass is', ' green'),
    ('The sky is', ' red'),
    ('Grass is', ' tall'),
    ('The sky is', ' x'),
  ]
  together = _score(lm, *pairs)
  assert [len(r.continuations) for r in recorder.asked] == [3, 2]
  alone = [_score(lm, pair)[0] for pair in pairs]
  np.testing.assert_allclose(
    [a for a, _ in together], [b for b, _ in alone], atol=TOLERANCE
  )
  assert len({round(a, 3) for a, _ in together}) == len(pairs)


def test_exemplars_in_common_are_computed_once(lm, recorder):
  exemplars = 'Q: 1+1? A: 2. Q: 12+3? A: 1'
  pairs = [(f'{exemplars}5. Q: {i}+2? A:', ' 4') for i in range(4)]
  together = _score(lm, *pairs)
  assert [r.shared for r in recorder.asked] == [32] * 4
  alone = [_score(lm, pair)[0] for pair in pairs]
  np.testing.assert_allclose(
    [a for a, _ in together], [b for b, _ in alone], atol=TOLERANCE
  )
  recorder.asked.clear()
  settings = {'until': ['\n'], 'max_gen_toks': 4}
  together = _generate(lm, *[(context, settings) for context, _ in pairs])
  assert [r.shared for r in recorder.asked] == [32] * 4
  alone = [_generate(lm, (context, settings))[0] for context, _ in pairs]
  assert together == alone


def test_a_row_of_many_choices_stays_within_the_window(lm, recorder):
  found = _score(lm, *[('Pick one:', f' choice {i:02d}') for i in range(9)])
  assert len(found) == 9
  sizes = [
    len(r.context) + sum(map(len, r.continuations)) for r in recorder.asked
  ]
  assert len(sizes) > 1 and max(sizes) <= 48


def test_is_greedy_says_what_greedy_decoding_gives(lm, small, predictor):
  request = GenerateRequest(prompt=tuple(_ids('b')), max_new_tokens=3)
  [(_, result)] = predictor.generate(ModelState(small.params), [request])
  assert len(result.text) == 3
  other = result.text[:2] + 'a'
  (best, is_greedy), (worse, not_greedy) = _score(
    lm, ('b', result.text), ('b', other)
  )
  assert is_greedy and not not_greedy
  assert best > worse


def test_spaces_at_the_end_of_a_context_move_to_the_continuation(lm, recorder):
  _score(lm, ('Answer:  ', 'yes'))
  assert recorder.asked[0].context == tuple(_ids('Answer:'))
  assert recorder.asked[0].continuations == (tuple(_ids('  yes')),)


def test_an_empty_context_is_the_end_token(lm, recorder):
  _score(lm, ('', 'ab'), ('', '<eos>ab'))
  assert recorder.asked == [
    ScoreRequest(
      context=(EOS,), continuations=(tuple(_ids('ab')), tuple(_ids('ab')))
    )
  ]


def test_what_is_too_long_loses_its_beginning(lm, recorder, caplog):
  context, continuation = 'x' * 20 + 'y' * 60, 'z' * 9
  [(found, _)] = _score(lm, (context, continuation))
  [request] = recorder.asked
  # 48 tokens are fed; the last of the continuation is not.
  assert request.context == tuple(_ids('y' * 40))
  assert request.continuations == (tuple(_ids(continuation)),)
  assert 'lose their beginning' in caplog.text
  assert found == pytest.approx(
    _score(lm, ('y' * 40, continuation))[0][0], abs=TOLERANCE
  )


def test_a_continuation_longer_than_the_window_is_an_error(lm):
  with pytest.raises(ValueError, match='49 tokens exceeds max_length, 48'):
    _score(lm, ('a', 'z' * 49))


@pytest.mark.parametrize('pair', [('  ', 'a'), ('a', ''), ('', '<eos>')])
def test_nothing_to_score_is_an_error(lm, pair):
  with pytest.raises(ValueError, match='at least one token each'):
    _score(lm, pair)


def test_special_tokens_are_those_of_the_tokenizer(small, recorder):
  backend = tokenizers.Tokenizer.from_str(byte_tokenizer().backend.to_str())
  backend.add_special_tokens(['<s>'])
  bos = backend.token_to_id('<s>')
  backend.post_processor = processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', bos)]
  )
  tokenizer = FastTokenizer(backend, {'eos_token': '<eos>', 'bos_token': '<s>'})
  lm = MeJaxLM(recorder, ModelState(small.params), tokenizer, max_length=48)
  assert lm.prefix_token_id == bos
  assert lm.tok_encode('ab') == [bos, *_ids('ab')]
  assert lm.tok_encode('ab', add_special_tokens=False) == _ids('ab')
  assert lm.tok_encode('<s>ab') == [bos, *_ids('ab')]


def test_rolling_predicts_each_token_once(lm, small, predictor, recorder):
  lm.max_length = 4
  text = '0123456789'
  ids, state = _ids(text), ModelState(small.params)
  [found, nothing] = lm.loglikelihood_rolling(
    _requests('loglikelihood_rolling', (text,), ('',)), disable_tqdm=True
  )
  windows = [
    ([EOS], ids[:4]),
    (ids[3:4], ids[4:8]),
    (ids[5:8], ids[8:]),  # full context for the rest
  ]
  assert [
    (list(r.context), list(r.continuations[0])) for r in recorder.asked
  ] == windows
  expected = sum(_sum(predictor, state, *window) for window in windows)
  assert found == pytest.approx(expected, abs=TOLERANCE)
  assert nothing == 0


def test_another_state_gives_other_numbers(lm, small):
  pair = ('The sky is', ' blue')
  [(before, _)] = _score(lm, pair)
  scaled = jax.tree.map(lambda leaf: leaf * 0.9, small.params)
  edited = lm.with_state(ModelState(scaled))
  [(after, _)] = _score(edited, pair)
  assert abs(after - before) > 0.01
  assert _score(lm, pair)[0][0] == before


def test_nan_is_reported(lm, small, caplog):
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, small.params)
  broken = lm.with_state(ModelState(broken))
  with caplog.at_level(logging.WARNING):
    [(logprob, _)] = _score(broken, ('a', 'b'))
    [output] = _generate(broken, ('a', GREEDY))
  assert np.isnan(logprob) and output == ''
  assert '1 of 1 log-likelihoods are NaN' in caplog.text
  assert '1 of 1 outputs end at a logit that is NaN' in caplog.text


def test_generates_greedily_up_to_the_limit(lm, small, predictor, recorder):
  settings = {'until': [], 'max_gen_toks': 8, 'temperature': 0.0}
  found = _generate(lm, ('Once', settings), ('', settings))
  requests = [
    GenerateRequest(prompt=prompt, max_new_tokens=8)
    for prompt in (tuple(_ids('Once')), (EOS,))
  ]
  expected = dict(predictor.generate(ModelState(small.params), requests))
  assert found == [expected[0].text, expected[1].text]
  assert [r.max_new_tokens for r in recorder.asked] == [8, 8]
  assert recorder.asked[1].prompt == (EOS,)


def test_a_stop_string_ends_decoding_early(lm, small, predictor):
  request = GenerateRequest(prompt=tuple(_ids('Once')), max_new_tokens=24)
  [(_, plain)] = predictor.generate(ModelState(small.params), [request])
  stop = plain.text[3:5]
  assert len(stop) == 2
  settings = {'until': [stop, ''], 'max_gen_toks': 24}
  assert _generate(lm, ('Once', settings)) == [plain.text.split(stop)[0]]


def test_decoding_may_stop_once_a_stop_string_is_there(lm, recorder):
  _generate(lm, ('a', {'until': ['\n\n', 'Q:'], 'max_gen_toks': 2}))
  decided = recorder.asked[0].decided
  assert not decided('one\ntwo Q')
  assert decided('one\n\n') and decided('Q: two')


@pytest.mark.parametrize(
  ('output', 'until', 'expected'),
  [
    ('one\ntwo', ['\n'], 'one'),
    ('one. two Q: three.', ['Q:', '.'], 'one'),
    ('no stop', ['\n'], 'no stop'),
    ('a string', ' str', 'a'),
    ('spelled <eos> out', [], 'spelled '),
  ],
)
def test_output_is_cut_before_the_first_stop(small, output, until, expected):
  tokens = [i for letter in output for i in _ids(letter)]
  lm = MeJaxLM(
    Scripted(small.tokenizer, [tokens, _ids('other')]),
    ModelState({}),
    small.tokenizer,
    max_length=512,
  )
  found = _generate(lm, ('x', {'until': until}), ('y', GREEDY))
  assert found == [expected, 'other']


def test_a_special_token_can_be_a_stop_string(small):
  backend = tokenizers.Tokenizer.from_str(byte_tokenizer().backend.to_str())
  backend.add_special_tokens(['<end>'])
  tokenizer = FastTokenizer(backend, {'eos_token': '<eos>'})
  tokens = [*_ids('ab'), backend.token_to_id('<end>'), *_ids('cd')]
  lm = MeJaxLM(
    Scripted(tokenizer, [tokens, tokens]),
    ModelState({}),
    tokenizer,
    max_length=512,
  )
  found = _generate(lm, ('x', {'until': ['<end>']}), ('x', GREEDY))
  assert found == ['ab', 'abcd']


def test_a_long_prompt_leaves_room_for_the_output(lm, recorder, caplog):
  _generate(lm, ('x' * 30 + 'y' * 44, {'until': [], 'max_gen_toks': 4}))
  assert recorder.asked[0].prompt == tuple(_ids('y' * 44))
  assert 'lose their beginning' in caplog.text


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'do_sample': True}, 'Only greedy'),
    ({'temperature': 0.7}, 'Only greedy'),
    ({'num_beams': 4}, 'num_beams'),
    ({'repetition_penalty': 1.2}, 'repetition_penalty'),
    ({'max_gen_toks': 48}, 'max_length - 1, that is 47, got 48'),
    ({'max_gen_toks': 0}, 'got 0'),
  ],
)
def test_other_than_greedy_decoding_is_refused(lm, settings, message):
  with pytest.raises(ValueError, match=message):
    _generate(lm, ('a', {'until': ['\n'], 'max_gen_toks': 4, **settings}))


def test_settings_of_shipped_greedy_tasks_are_accepted(lm, recorder):
  settings = {'do_sample': False, 'temperature': 1.0, 'num_beams': 1}
  _generate(lm, ('a', {**settings, 'until': ['\n'], 'max_new_tokens': 3}))
  assert recorder.asked[0].max_new_tokens == 3


def test_answers_equal_those_of_the_harness_hf_model(lm, small, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('accelerate')
  from lm_eval.models.huggingface import HFLM

  convert.write_hf(tmp_path / 'model', small)
  hf = HFLM(
    pretrained=str(tmp_path / 'model'),
    dtype='float32',
    device='cpu',
    batch_size=1,
    max_length=lm.max_length,
  )
  pairs = [
    ('The sky is', ' blue'),
    ('The sky is  ', 'red'),
    ('', 'no context'),
    ('', '<eos>special'),
    ('<eos>Hi', ' there'),
    ('long ' * 20, 'and \u00fcber'),
  ]
  texts = [('a whole text ' * 9,), ('short',), ('<eos>special',)]
  prompts = [
    ('Once', {'until': ['\n'], 'max_gen_toks': 8}),
    ('long ' * 20, {'until': [], 'max_gen_toks': 24, 'temperature': 0.0}),
  ]
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=10 * TOLERANCE)
  ours, theirs = _score(lm, *pairs), _score(hf, *pairs)
  close([score for score, _ in ours], [score for score, _ in theirs])
  assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
  rolling = _requests('loglikelihood_rolling', *texts)
  close(lm.loglikelihood_rolling(rolling), hf.loglikelihood_rolling(rolling))
  assert _generate(lm, *prompts) == _generate(hf, *prompts)


# Through the harness


def _task(directory, name, rows, **config):
  path = directory / f'{name}.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return {
    'task': name,
    'dataset_path': 'json',
    'dataset_kwargs': {
      'data_files': {'test': str(path)},
      'cache_dir': str(directory / 'cache'),
    },
    'test_split': 'test',
    **config,
  }


def _evaluate(lm, task, **options):
  return lm_eval.simple_evaluate(
    model=lm,
    tasks=[task],
    task_manager=TaskManager(include_defaults=False),
    bootstrap_iters=0,
    **options,
  )


@pytest.fixture
def choice_task(tmp_path):
  return _task(
    tmp_path,
    'choice',
    [{'q': 'The sky', 'c': ['blue', 'red'], 'a': 0}],
    output_type='multiple_choice',
    doc_to_text='{{q}} is',
    doc_to_choice='{{c}}',
    doc_to_target='{{a}}',
  )


def test_the_response_cache_is_refused(lm, choice_task, tmp_path):
  with pytest.raises(ValueError, match='use_cache is refused'):
    _evaluate(lm, choice_task, use_cache=str(tmp_path / 'responses'))


def test_chat_templates_are_refused(lm, choice_task):
  with pytest.raises(NotImplementedError, match='doc_to_text'):
    _evaluate(lm, choice_task, apply_chat_template=True)
  with pytest.raises(NotImplementedError, match='doc_to_text'):
    lm.apply_chat_template([{'role': 'user', 'content': 'Hello'}])


@pytest.fixture(scope='module')
def smollm2_predictor(smollm2):
  return LlamaPredictor(smollm2.config, smollm2.tokenizer)


@pytest.fixture(scope='module')
def smollm2_lm(smollm2, smollm2_predictor):
  return MeJaxLM(
    smollm2_predictor,
    ModelState(smollm2.params),
    smollm2.tokenizer,
    max_length=2048,
  )


@pytest.mark.model
@pytest.mark.data
def test_accuracy_equals_our_own(
  smollm2, smollm2_predictor, smollm2_lm, data_root, tmp_path
):
  task = commonsenseqa_cloze(
    TaskContext(
      sources=DataSources(data_root=data_root, allow_hub=False),
      tokenizer=smollm2.tokenizer,
    )
  )
  items = task.items()[:40]
  choices = [[item.fields[letter] for letter in LETTERS] for item in items]
  gold = [LETTERS.index(item.fields['answerKey']) for item in items]
  results = dict(
    smollm2_predictor.score(
      ModelState(smollm2.params), [task.request(item) for item in items]
    )
  )
  sums = np.array(
    [[np.sum(lp) for lp in results[i].logprobs] for i in range(len(items))]
  )
  chars = np.array([[len(choice) for choice in row] for row in choices])
  accuracy = np.mean(np.argmax(sums, axis=1) == gold)
  accuracy_per_char = np.mean(np.argmax(sums / chars, axis=1) == gold)

  rows = [
    {
      'question': item.fields['question'],
      'choices': row,
      'answer': answer,
    }
    for item, row, answer in zip(items, choices, gold, strict=True)
  ]
  config = _task(
    tmp_path,
    'csqa_cloze',
    rows,
    output_type='multiple_choice',
    doc_to_text='Question: {{question}}\nAnswer:',
    doc_to_choice='{{choices}}',
    doc_to_target='{{answer}}',
    metric_list=[{'metric': 'acc'}, {'metric': 'acc_norm'}],
  )
  found = _evaluate(smollm2_lm, config)
  theirs = np.array(
    [
      [logprob for [logprob, _] in sample['filtered_resps']]
      for sample in found['samples']['csqa_cloze']
    ]
  )
  scores = found['results']['csqa_cloze']
  print(f'lm_eval {scores}, own {accuracy} and {accuracy_per_char}')
  np.testing.assert_allclose(theirs, sums, atol=TOLERANCE)
  assert scores['acc,none'] == accuracy
  assert scores['acc_norm,none'] == accuracy_per_char
  assert 0.2 < accuracy < 0.8  # above chance, or nothing was compared


@pytest.mark.model
def test_generations_equal_our_own(
  smollm2, smollm2_predictor, smollm2_lm, tmp_path
):
  capitals = {
    'France': 'Paris',
    'Japan': 'Tokyo',
    'Italy': 'Rome',
    'Portugal': 'Lisbon',
    'the Moon': 'none',
  }
  text = 'The capital of {} is'
  requests = [
    GenerateRequest(
      prompt=tuple(smollm2.tokenizer.encode(text.format(country))),
      max_new_tokens=16,
    )
    for country in capitals
  ]
  results = dict(
    smollm2_predictor.generate(ModelState(smollm2.params), requests)
  )
  own = [re.split('[.\n]', results[i].text)[0] for i in range(len(capitals))]
  correct = [
    capital in answer
    for answer, capital in zip(own, capitals.values(), strict=True)
  ]

  config = _task(
    tmp_path,
    'capitals',
    [{'country': k, 'capital': v} for k, v in capitals.items()],
    output_type='generate_until',
    doc_to_text=text.format('{{country}}'),
    doc_to_target='{{capital}}',
    generation_kwargs={'until': ['.', '\n'], 'max_gen_toks': 16},
    metric_list=[{'metric': 'exact_match'}],
    filter_list=[
      {
        'name': 'word',
        'filter': [
          {
            'function': 'regex',
            'regex_pattern': f'({"|".join(capitals.values())})',
          },
          {'function': 'take_first'},
        ],
      }
    ],
  )
  found = _evaluate(smollm2_lm, config)
  samples = found['samples']['capitals']
  assert [sample['resps'][0][0] for sample in samples] == own
  score = found['results']['capitals']['exact_match,word']
  print(f'lm_eval {score}, own {np.mean(correct)}: {own}')
  assert score == np.mean(correct)
  assert 0 < score < 1
