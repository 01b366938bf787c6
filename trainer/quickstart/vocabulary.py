"""Word lists for questions and ordinary sentences, and generators of made-up words."""

from __future__ import annotations

from random import Random
from typing import Final

NOUNS: Final = tuple(
    """
    apple bread breakfast dinner soup cake coffee tea sugar salt garden flower tree forest river lake ocean
    beach mountain island desert sky sun moon star planet weather storm snow wind winter summer spring
    autumn morning evening night day week month year hour minute birthday holiday party wedding music song
    guitar piano concert film movie actor book novel poem letter story chapter author painter picture museum
    theatre dance game football tennis chess team player coach winner race car train bus bicycle plane
    airport station ticket hotel road bridge map city town village street house flat kitchen bedroom
    bathroom window door roof wall chair table lamp bed clock phone laptop computer keyboard screen printer
    internet website password account email message photo video camera robot machine engine battery energy
    light water fire air metal gold stone glass paper plastic cloth shirt jacket shoes hat dress dog cat
    horse cow bird fish bear lion snake spider insect bee elephant monkey doctor nurse hospital medicine
    pain headache sleep dream heart brain body hand foot eye nose teacher student school university exam
    lesson language grammar word sentence science physics chemistry biology history geography philosophy
    religion politics president king queen minister government law court police army war peace country
    nation border tax bank money price job boss office meeting salary company customer market shop factory
    farm farmer writer singer friend neighbour brother sister mother father child baby family husband wife
    love hope fear anger joy luck truth secret idea question problem plan project report speech interview
    essay recipe gift advice opinion reason difference
    """.split()
)
VERBS: Final = tuple(
    """
    write read draw paint sing play watch visit build repair clean cook bake eat drink buy sell rent find
    lose keep open close start stop help teach learn study explain describe translate summarise compare
    review edit correct improve rewrite shorten recommend suggest plan organise invent imagine remember
    forget believe understand know like love hate want need see hear smell touch feel choose change move
    carry throw catch travel walk run swim drive fly ride sleep wake wait call invite meet marry thank
    forgive discuss argue fight win protect save grow plant feed train design program install download
    upload print send receive answer
    """.split()
)
ADJECTIVES: Final = tuple(
    """
    good bad new old young big small long short tall happy sad angry tired hungry thirsty beautiful ugly
    clean dirty cheap expensive fast slow hot cold warm cool dry wet hard soft heavy easy difficult simple
    strange funny serious boring exciting famous modern ancient popular rare dangerous safe healthy sick
    rich poor strong weak quiet loud bright dark red blue green yellow black white brown sweet sour fresh
    free busy lazy clever brave kind polite honest nervous lonely proud useful broken wooden local foreign
    political medical natural
    """.split()
)
PLACES: Final = tuple(
    """
    Rome Berlin Vienna Oslo Cairo Tokyo Delhi Lima Boston Chicago London Dublin Athens Prague Warsaw Kyiv
    Ankara Nairobi Sydney Toronto Mexico Brazil Chile Peru Canada France Italy Spain Germany Poland Norway
    Sweden Finland Greece Turkey Egypt Kenya India China Japan Korea Vietnam Australia Europe Africa Asia
    America Mars Jupiter
    """.split()
)
NAMES: Final = tuple(
    """
    Mara Tom Ada Ravi Lena Omar Yuki Nils Ines Paul Zoe Ken Maria John Peter Sara Ali Chen Olga Ivan Emma
    Noah Mia Liam Lucas Eva Max Kate Sam Alex Einstein Newton Shakespeare Napoleon Cleopatra Beethoven
    Picasso Gandhi Darwin
    """.split()
)
FUNCTION_WORDS: Final = tuple(
    """
    the a an of in on at to for with from by about my your his her our their this that these those i you he
    she we they it me him us them and but or because so very really quite always never often today tomorrow
    yesterday now here there not no yes maybe please just only also some any every all
    """.split()
)
LANGUAGES: Final = tuple(
    """
    French German Spanish Italian Polish Russian Chinese Japanese Korean Arabic Hindi Latin Greek Turkish
    Dutch Swedish Portuguese English Czech Finnish Danish Hebrew
    """.split()
)
FOREIGN: Final = tuple(
    tuple(line.split())
    for line in """
    ich du wir ist sind nicht bitte danke hallo guten morgen abend wo wann warum wer kannst mir das der die ein eine haus
    schreibe ein gedicht über den winter wie spät heißt du morgen wetter schön und aber mit für von helfen
    je tu nous est sont pas merci bonjour salut bonsoir où quand pourquoi qui peux aide moi le la les une maison écris un
    poème comment vas quel temps demain beau et mais avec pour de très bien sur
    yo tú es son no por favor gracias hola buenos días dónde cuándo qué quién puedes ayudarme el la los una casa escribe
    un poema cómo estás hace mañana y pero con para de muy bien sobre
    io sono sei non per favore grazie ciao buongiorno dove quando perché chi puoi aiutarmi il la una casa scrivi una
    poesia come stai che tempo fa domani e ma con molto bene
    eu você não por favor obrigado olá bom dia onde quando quem pode me ajudar o a uma casa escreva um poema como está
    ik jij is niet alstublieft dank hallo goedemorgen waar wanneer waarom wie kun helpen het de een huis schrijf gedicht
    jag du är inte tack hej god morgon var när varför vem kan hjälpa mig det en ett hus skriv en dikt om väder
    ja ty jest nie proszę dziękuję cześć dzień dobry gdzie kiedy dlaczego kto możesz pomóc mi dom napisz wiersz jak
    ben sen değil lütfen teşekkürler merhaba günaydın nerede ne zaman neden kim yardım ev şiir yaz nasılsın bugün hava
    я ты он мы не пожалуйста спасибо здравствуй доброе утро где когда почему кто можешь помочь мне дом напиши стих как
    погода сегодня хорошо что это расскажи о себе столица
    εγώ εσύ είναι δεν παρακαλώ ευχαριστώ γεια καλημέρα πού πότε γιατί ποιος μπορείς σπίτι γράψε ποίημα τι κάνεις
    אני אתה לא בבקשה תודה שלום בוקר טוב איפה מתי למה מי יכול לעזור בית כתוב שיר מה שלומך
    أنا أنت ليس من فضلك شكرا السلام صباح الخير أين متى لماذا هل يمكنك مساعدتي بيت اكتب قصيدة ما اسمك كيف الطقس
    मैं तुम नहीं कृपया धन्यवाद नमस्ते सुप्रभात कहाँ कब क्यों कौन मदद घर कविता लिखो क्या आप कैसे हैं
    我 你们 不 请 谢谢 早上好 在哪里 什么时候 为什么 谁 可以 帮助 房子 写一首诗 天气 今天 怎么样 吗 的 是 中国 介绍 一下
    私は あなた ではない お願い ありがとう おはよう どこ いつ なぜ 誰 助けて 家 詩を書いて 天気 今日 です か ください 名前は
    나는 당신 아니 제발 감사합니다 안녕하세요 어디 언제 왜 누구 도와 집 시를 써 날씨 오늘 어때요 이름이 뭐예요
    ฉัน คุณ ไม่ กรุณา ขอบคุณ สวัสดี ที่ไหน เมื่อไร ทำไม ใคร ช่วย บ้าน เขียน กลอน
    minä sinä ei ole kiitos hei hyvää huomenta missä milloin miksi kuka voitko auttaa talo kirjoita runo sää tänään
    """.strip().splitlines()
)
SCRIPTS: Final = (
    (0x61, 0x7A), (0xE0, 0xFF), (0x100, 0x17F), (0x3B1, 0x3C9),
    (0x430, 0x44F), (0x5D0, 0x5EA), (0x627, 0x64A),
    (0x905, 0x939), (0xE01, 0xE2E), (0x3042, 0x3093), (0x30A2, 0x30F3), (0x4E00, 0x6FFF), (0xAC00, 0xB4FF),
    (0x1F300, 0x1F64F), (0x21, 0x2F),
)  # fmt: skip
"""First and last code points of scripts, with emoji and punctuation at the end."""

_ONSETS: Final = tuple(
    "b c d f g h j k l m n p r s t v w z br ch cr dr fl gr pl pr qu sh sk sl st th tr".split()
)
_NUCLEI: Final = tuple("a e i o u ai ea ee ie oa oo ou y".split())
_CODAS: Final = ("", "", "", *"n r s t l m d k ck ll nd ng nt rd rn ss st th".split())


def made_up_word(rng: Random) -> str:
    """Return a word of one to four random syllables, to cover token sequences outside the lists."""
    syllables = rng.choice((1, 1, 2, 2, 2, 3, 4))
    return "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS) for _ in range(syllables))


def any_word(rng: Random) -> str:
    """Return a word from a list or a made-up word."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(FUNCTION_WORDS)
    if kind < 0.4:
        return made_up_word(rng)
    return rng.choice(rng.choice((NOUNS, NOUNS, VERBS, ADJECTIVES, NAMES, PLACES)))


def words(rng: Random, low: int, high: int) -> str:
    """Return ``low`` to ``high`` words separated by spaces."""
    return " ".join(any_word(rng) for _ in range(rng.randint(low, high)))


def foreign_words(rng: Random) -> str:
    """Return random words of one language or random letters of one script."""
    if rng.random() < 0.75:
        language = rng.choice(FOREIGN)
        start = rng.randrange(len(language))
        if rng.random() < 0.5:
            return " ".join(language[start : start + rng.randint(2, 8)])
        return " ".join(rng.choice(language) for _ in range(rng.randint(1, 8)))
    first, last = rng.choice(SCRIPTS)
    lengths = [rng.randint(1, 7) for _ in range(rng.randint(1, 5))]
    return " ".join("".join(chr(rng.randint(first, last)) for _ in range(length)) for length in lengths)
