"""What TyDiQA's prompts say in each language, and how many questions it has.

The strings are those of OpenCompass's `tydiqa_gen_978d2a`.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Language:
  """One language.

  Attributes:
    instruction: First line of the prompt.
    passage: Label of the passage.
    question: Label of the question.
    answer: Label of the answer.
    official: Questions in the official development split of GoldP; 0 where
      the language is not in it.
  """

  instruction: str
  passage: str
  question: str
  answer: str
  official: int = 0


LANGUAGES: Mapping[str, Language] = {
  'arabic': Language(
    'أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.',
    'المقطع:',
    'السؤال:',
    'الإجابة:',
    921,
  ),
  'bengali': Language(
    'প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।',
    'অধ্যায়:',
    'প্রশ্ন:',
    'উত্তর:',
    113,
  ),
  'english': Language(
    'Answer the following question based on '
    'the information in the given passage.',
    'Passage:',
    'Question:',
    'Answer:',
    440,
  ),
  'finnish': Language(
    'Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.',
    'Kappale:',
    'Kysymys:',
    'Vastaus:',
    782,
  ),
  'indonesian': Language(
    'Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.',
    'Bagian:',
    'Pertanyaan:',
    'Jawaban:',
    565,
  ),
  'japanese': Language(
    '文脈に基づいて質問に答えてください。',
    'ぶんしょう:',
    'しつもん:',
    'かいとう:',
  ),
  'korean': Language(
    '주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.',
    '문단:',
    '질문:',
    '답변:',
    276,
  ),
  'russian': Language(
    'Ответьте на следующий вопрос на основе информации в данном отрывке.',
    'Отрывок:',
    'Вопрос:',
    'Ответ:',
    812,
  ),
  'swahili': Language(
    'Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.',
    'Kifungu:',
    'Swali:',
    'Jibu:',
    499,
  ),
  'telugu': Language(
    'ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.',
    'పేరా:',
    'ప్రశ్న:',
    'సమాధానం:',
    669,
  ),
  'thai': Language(
    'ตอบคำถามต่อไปนี้โดยอิงตามข้อมูลในตอนข้อความที่กำหนด:',
    'ตอนข้อความ:',
    'คำถาม:',
    'คำตอบ:',
  ),
}
