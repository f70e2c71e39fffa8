"""MMLU as a cloze: how likely is the text of each choice?

Zero-shot, prompt `Question: {question}\\nAnswer:`, question and choices
stripped. Questions that speak of their options ("which of these") do not show
them here.
"""

from me_jax.evals.cloze_task import ClozeTask
from me_jax.evals.mmlu import LETTERS, read_items
from me_jax.evals.mmlu_subjects import SUBJECTS
from me_jax.evals.task import TaskContext


def mmlu_cloze(context: TaskContext) -> ClozeTask:
  """The 14,042 test questions; the headline is the mean over 57 subjects."""
  return ClozeTask(
    name='mmlu_cloze',
    version='cloze_0_shot',
    context=context,
    docs=lambda: read_items(context.sources, SUBJECTS),
    doc_to_text=lambda item: (
      f'Question: {item.fields["input"].strip()}\nAnswer:'
    ),
    doc_to_choice=lambda item: [
      item.fields[letter].strip() for letter in LETTERS
    ],
    doc_to_target=lambda item: item.fields['target'],
    labels=LETTERS,
    macro_over=tuple(SUBJECTS),
  )
