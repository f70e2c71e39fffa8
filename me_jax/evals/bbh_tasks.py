"""The 27 tasks of BIG-Bench Hard (Suzgun et al. 2022)."""

import dataclasses
from collections.abc import Mapping

CHOICE = 'choice'
FREE_FORM = 'free_form'


@dataclasses.dataclass(frozen=True)
class BbhTask:
  """What is known of a task without its files.

  Attributes:
    kind: `CHOICE` (the answer is an option letter) or `FREE_FORM`.
    n_items: Official number of items; 6,511 in all.
    prompt_hash: First 12 hex digits of the SHA-256 of the exemplar text.
  """

  kind: str
  n_items: int
  prompt_hash: str


TASKS: Mapping[str, BbhTask] = {
  'boolean_expressions': BbhTask(FREE_FORM, 250, '84d89ef2ebf2'),
  'causal_judgement': BbhTask(FREE_FORM, 187, 'b76a33493a1d'),
  'date_understanding': BbhTask(CHOICE, 250, 'ec60ecb5998c'),
  'disambiguation_qa': BbhTask(CHOICE, 250, 'aa108ba978ed'),
  'dyck_languages': BbhTask(FREE_FORM, 250, '52dec948d978'),
  'formal_fallacies': BbhTask(FREE_FORM, 250, '58daee21cb8a'),
  'geometric_shapes': BbhTask(CHOICE, 250, 'e219fdcdf28c'),
  'hyperbaton': BbhTask(CHOICE, 250, '266bfd031bdf'),
  'logical_deduction_five_objects': BbhTask(CHOICE, 250, '2c8a9581185b'),
  'logical_deduction_seven_objects': BbhTask(CHOICE, 250, '2c8a9581185b'),
  'logical_deduction_three_objects': BbhTask(CHOICE, 250, '2c8a9581185b'),
  'movie_recommendation': BbhTask(CHOICE, 250, '82430ef6ed36'),
  'multistep_arithmetic_two': BbhTask(FREE_FORM, 250, '83b6388b2274'),
  'navigate': BbhTask(FREE_FORM, 250, '0c04ef97ca6a'),
  'object_counting': BbhTask(FREE_FORM, 250, 'a536307309ed'),
  'penguins_in_a_table': BbhTask(CHOICE, 146, '8ee12e67dee1'),
  'reasoning_about_colored_objects': BbhTask(CHOICE, 250, 'e4a2503c80dd'),
  'ruin_names': BbhTask(CHOICE, 250, '3aa1204d5f34'),
  'salient_translation_error_detection': BbhTask(CHOICE, 250, '9c13f5b5cb46'),
  'snarks': BbhTask(CHOICE, 178, '41200ac2cece'),
  'sports_understanding': BbhTask(FREE_FORM, 250, 'be04f01eee26'),
  'temporal_sequences': BbhTask(CHOICE, 250, 'c597815135af'),
  'tracking_shuffled_objects_five_objects': BbhTask(
    CHOICE, 250, '466b860c8cec'
  ),
  'tracking_shuffled_objects_seven_objects': BbhTask(
    CHOICE, 250, '466b860c8cec'
  ),
  'tracking_shuffled_objects_three_objects': BbhTask(
    CHOICE, 250, '466b860c8cec'
  ),
  'web_of_lies': BbhTask(FREE_FORM, 250, '68f58c5e0ea6'),
  'word_sorting': BbhTask(FREE_FORM, 250, 'ba1451cfccb4'),
}
