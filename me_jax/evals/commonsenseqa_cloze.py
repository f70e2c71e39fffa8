"""CommonsenseQA as a cloze: how likely is the text of each choice?

Zero-shot, prompt `Question: {stem}\\nAnswer:`.
"""

from me_jax.evals.cloze_task import ClozeTask
from me_jax.evals.commonsenseqa import LETTERS, read_items
from me_jax.evals.task import TaskContext


def commonsenseqa_cloze(context: TaskContext) -> ClozeTask:
  """The 1,221 questions of the development split."""
  return ClozeTask(
    name='commonsenseqa_cloze',
    version='cloze_0_shot',
    context=context,
    docs=lambda: read_items(context.sources, 'dev'),
    doc_to_text=lambda item: f'Question: {item.fields["question"]}\nAnswer:',
    doc_to_choice=lambda item: [item.fields[letter] for letter in LETTERS],
    doc_to_target=lambda item: item.fields['answerKey'],
    labels=LETTERS,
  )
