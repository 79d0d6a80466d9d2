//! From the corpus' text to cases: every error names its file and line and what would be right.

use super::case::{
    Action, Answer, Case, Fact, NEEDS, Need, Packet, Request, Setting, Step, Value, Word,
};
use super::expression::{Expression, Quantity};
use super::field::{FLAGS, Field};
use crate::acceptor::Drop;
use crate::wire::{Flags, Kind, Malformed};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A file of the corpus cannot be read as one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct TextError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there, and what would be right.
    pub problem: String,
}

/// Reads the cases of a file.
///
/// # Errors
/// Names the first line that is not understood.
pub fn parse(file: &str, text: &str) -> Result<Vec<Case>, TextError> {
    let mut reader = Reader {
        file,
        cases: Vec::new(),
        asked: None,
    };
    let mut last = 0;
    for (index, line) in text.lines().enumerate() {
        last = index + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        reader.line(last, line).map_err(|problem| TextError {
            file: file.into(),
            line: last,
            problem,
        })?;
    }
    reader.check_answered().map_err(|problem| TextError {
        file: file.into(),
        line: last,
        problem,
    })?;
    Ok(reader.cases)
}

struct Reader<'a> {
    file: &'a str,
    cases: Vec<Case>,
    /// A `send` whose outcome is still to come.
    asked: Option<(usize, Request)>,
}

const ANSWERS: &str = "answer KIND, silent, dropped REASON, malformed REASON or not-ours";

impl Reader<'_> {
    fn check_answered(&self) -> Result<(), String> {
        match &self.asked {
            Some((line, _)) => Err(format!("the `send` of line {line} wants {ANSWERS}")),
            None => Ok(()),
        }
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        let outcome = outcome(word, rest)?;
        if outcome.is_none() {
            self.check_answered()?;
        }
        if word == "case" {
            return self.case(number, rest);
        }
        let Some(case) = self.cases.last_mut() else {
            return Err("nothing stands before the first `case NAME`".into());
        };
        if let Some(answer) = outcome {
            let Some((line, request)) = self.asked.take() else {
                return Err(format!("`{word}` follows a `send`"));
            };
            let action = Action::Exchange(request, answer);
            case.steps.push(Step { line, action });
            return Ok(());
        }
        let action = match word {
            "why" => {
                let gap = if case.why.is_empty() { "" } else { " " };
                case.why = format!("{}{gap}{rest}", case.why);
                return Ok(());
            }
            "needs" => {
                case.needs.push(need(rest)?);
                return Ok(());
            }
            "send" => {
                self.asked = Some((number, request(rest)?));
                return Ok(());
            }
            "wait" => Action::Wait(Expression::parse(rest)?),
            "set" => set(rest)?,
            "overlap" => match rest.split_once(" with ") {
                Some((first, second)) => Action::Overlap(request(first)?, request(second)?),
                None => return Err("write `overlap KIND … with KIND …`".into()),
            },
            _ => Action::Fact(fact(word, rest)?),
        };
        case.steps.push(Step {
            line: number,
            action,
        });
        Ok(())
    }

    fn case(&mut self, line: usize, name: &str) -> Result<(), String> {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(format!(
                "`{name}` is no name: write lower-case letters, digits and hyphens"
            ));
        }
        if let Some(other) = self.cases.iter().find(|case| case.name == name) {
            return Err(format!(
                "`{name}` is the name of the case in line {} too",
                other.line
            ));
        }
        self.cases.push(Case {
            file: self.file.into(),
            line,
            name: name.into(),
            why: String::new(),
            needs: Vec::new(),
            steps: Vec::new(),
        });
        Ok(())
    }
}

fn need(text: &str) -> Result<Need, String> {
    if let Some(slots) = text.strip_prefix("window ") {
        let slots = slots.parse();
        return slots
            .map(Need::Window)
            .map_err(|_| "write `needs window N`, N slots at least".into());
    }
    if let Some(epoch) = text.strip_prefix("epoch ") {
        let epoch = epoch.parse();
        return epoch
            .map(Need::Epoch)
            .map_err(|_| "write `needs epoch N`, N or higher".into());
    }
    let known = NEEDS.iter().find(|(name, _)| *name == text);
    known.map(|(_, need)| *need).ok_or_else(|| {
        let names: Vec<_> = NEEDS.iter().map(|(name, _)| *name).collect();
        format!(
            "nothing needs `{text}`: write window N, epoch N, {}",
            names.join(", ")
        )
    })
}

fn outcome(word: &str, rest: &str) -> Result<Option<Answer>, String> {
    let nothing_follows = || {
        if rest.is_empty() {
            Ok(())
        } else {
            Err(format!("nothing follows `{word}`, but `{rest}` does"))
        }
    };
    Ok(Some(match word {
        "answer" => {
            let mut words = Words(rest);
            let kind = words.kind()?;
            Answer::Packet(packet(kind, words, |name, _| Err(unknown_field(name)))?)
        }
        "silent" => {
            nothing_follows()?;
            Answer::Silent
        }
        "not-ours" => {
            nothing_follows()?;
            Answer::NotOurs
        }
        "dropped" => Answer::Dropped(named(rest, &Drop::ALL, Drop::name)?),
        "malformed" => Answer::Malformed(named(rest, &Malformed::ALL, Malformed::name)?),
        _ => return Ok(None),
    }))
}

fn named<T: Copy>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    let found = all.iter().find(|one| name(**one) == text);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
        format!("no reason is named `{text}`: write {}", names.join(", "))
    })
}

/// Words behind each other; quotes and brackets keep spaces.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn kind(&mut self) -> Result<Kind, String> {
        let name = self.next().unwrap_or_default();
        let found = Kind::ALL.iter().find(|kind| format!("{kind:?}") == name);
        found.copied().ok_or_else(|| {
            format!("`{name}` is no kind: write one of docs/protocol.md, such as Prepare")
        })
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let mut is_quoted = false;
        let end = text.find(|c: char| {
            is_quoted ^= c == '"';
            c == ' ' && !is_quoted
        });
        let (word, rest) = text.split_at(end.unwrap_or(text.len()));
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }
}

fn setting(word: &str) -> Result<(&str, &str), String> {
    word.split_once('=')
        .ok_or_else(|| format!("`{word}` sets nothing: write FIELD=…"))
}

fn unknown_field(name: &str) -> String {
    let names: Vec<_> = Field::ALL.iter().map(|field| field.name()).collect();
    format!(
        "no field is named `{name}`: write value, {}",
        names.join(", ")
    )
}

/// Reads the fields of a packet; what is none is given to `other`.
fn packet<'a>(
    kind: Kind,
    words: Words<'a>,
    mut other: impl FnMut(&'a str, &'a str) -> Result<(), String>,
) -> Result<Packet, String> {
    let mut packet = Packet::new(kind);
    for word in words {
        let (name, text) = setting(word)?;
        if name == "value" {
            packet.value = value(text)?;
        } else if let Some(field) = Field::from_name(name) {
            packet.fields.push((field, field_setting(field, text)?));
        } else {
            other(name, text)?;
        }
    }
    Ok(packet)
}

fn field_setting(field: Field, text: &str) -> Result<Setting, String> {
    match field {
        Field::Tag if text == "wrong" => Ok(Setting::WrongTag),
        Field::Flags if text.starts_with(|c: char| c.is_ascii_uppercase()) => {
            let mut flags = Flags(0);
            for name in text.split('|') {
                let found = FLAGS.iter().find(|(known, _)| *known == name);
                let (_, flag) = found.ok_or_else(|| {
                    let names: Vec<_> = FLAGS.iter().map(|(name, _)| *name).collect();
                    format!("no flag is named `{name}`: write {}", names.join(", "))
                })?;
                flags = flags.with(*flag);
            }
            Ok(Setting::Flags(flags))
        }
        Field::Ballot | Field::VoteBallot => Quantity::parse(text).map(Setting::Number),
        _ => Expression::parse(text)
            .map(Quantity::Number)
            .map(Setting::Number),
    }
}

fn value(text: &str) -> Result<Value, String> {
    if let Some(quoted) = text.strip_prefix('"') {
        return match quoted.strip_suffix('"') {
            Some(inner) if !inner.contains('"') => Ok(Value::Text(inner.into())),
            _ => Err(format!("{text} does not end with its quote")),
        };
    }
    if let Some(digits) = text.strip_prefix("hex:") {
        return hex(digits).map(Value::Hex);
    }
    let fill = || {
        let inner = text.strip_prefix("fill(")?.strip_suffix(')')?;
        let (length, first) = inner.split_once(',')?;
        Some((length.to_string(), first.trim().parse().ok()?))
    };
    match fill() {
        Some((length, first)) => Ok(Value::Fill(Expression::parse(&length)?, first)),
        None => Err(format!(
            "`{text}` is no value: write \"text\", hex:00ff or fill(LENGTH,FIRST-BYTE)"
        )),
    }
}

fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("`{digits}` is not pairs of hexadecimal digits");
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong()))
        .collect()
}

fn request(text: &str) -> Result<Request, String> {
    if let Some(digits) = text.strip_prefix("raw ") {
        let digits = digits.trim().strip_prefix("hex:");
        return digits
            .ok_or_else(|| "write `send raw hex:…`".to_string())
            .and_then(hex)
            .map(Request::Raw);
    }
    let mut words = Words(text);
    let kind = words.kind()?;
    let (mut cut, mut more) = (None, Vec::new());
    let packet = packet(kind, words, |name, text| {
        match name {
            "cut" => cut = Some(Expression::parse(text)?),
            "more" => more = hex(text.strip_prefix("hex:").unwrap_or(text))?,
            _ => return Err(unknown_field(name)),
        }
        Ok(())
    })?;
    Ok(Request::Packet { packet, cut, more })
}

fn set(text: &str) -> Result<Action, String> {
    let (mut slot, mut words) = (None, Vec::new());
    for word in Words(text) {
        let (name, number) = setting(word)?;
        if name == "slot" {
            slot = Some(Expression::parse(number)?);
            continue;
        }
        let known = Word::ALL.iter().find(|(known, _)| *known == name);
        let (_, word) = known.ok_or_else(|| {
            let names: Vec<_> = Word::ALL.iter().map(|(name, _)| *name).collect();
            format!(
                "no word is named `{name}`: write slot, {}",
                names.join(", ")
            )
        })?;
        words.push((*word, Quantity::parse(number)?));
    }
    Ok(Action::Set(slot, words))
}

/// The settings of a fact's line, each taken once.
struct Settings<'a> {
    word: &'a str,
    left: Vec<(&'a str, &'a str)>,
}

impl<'a> Settings<'a> {
    fn take(&mut self, name: &str) -> Result<&'a str, String> {
        let found = self.left.iter().position(|(known, _)| *known == name);
        let index = found.ok_or_else(|| format!("`{}` wants {name}=…", self.word))?;
        Ok(self.left.remove(index).1)
    }

    fn number(&mut self, name: &str) -> Result<Expression, String> {
        Expression::parse(self.take(name)?)
    }

    fn ballot(&mut self, name: &str) -> Result<Quantity, String> {
        Quantity::parse(self.take(name)?)
    }
}

fn fact(word: &str, rest: &str) -> Result<Fact, String> {
    let left = Words(rest).map(setting).collect::<Result<_, _>>();
    let known = [
        "region", "vote", "empty", "outside", "decided", "lease", "heard",
    ];
    if !known.contains(&word) {
        return Err(format!(
            "no line begins with `{word}`: write case, why, needs, send, {ANSWERS}, wait, set, \
             overlap, {}",
            known.join(", ")
        ));
    }
    let mut settings = Settings { word, left: left? };
    let fact = match word {
        "region" => Fact::Region {
            promised: settings.ballot("promised")?,
            highest: settings.number("highest")?,
            trim: settings.number("trim")?,
        },
        "vote" => Fact::Vote {
            slot: settings.number("slot")?,
            ballot: settings.ballot("ballot")?,
            value: value(settings.take("value")?)?,
        },
        "empty" => Fact::Empty(settings.number("slot")?),
        "outside" => Fact::Outside(settings.number("slot")?),
        "decided" => Fact::Decided {
            ballot: settings.ballot("ballot")?,
            from: settings.number("from")?,
            upto: settings.number("upto")?,
        },
        "lease" => Fact::Lease {
            ballot: settings.ballot("ballot")?,
            left: settings.number("left")?,
        },
        _ => Fact::Heard {
            node: settings.number("node")?,
            ago: settings.number("ago")?,
        },
    };
    match settings.left.first() {
        Some((name, _)) => Err(format!("`{word}` takes no {name}=…")),
        None => Ok(fact),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORY: &str = "\
case a-story
why It has everything.
needs window 8
needs lease
needs epoch 2
send Accept ballot=1.1 slot=W-1 flags=ACK_WANTED|LEASE tag=wrong value=\"a b\" cut=70 more=hex:00ff
malformed flags
send raw hex:4e57
not-ours
send Read slot=1
answer Vote ballot=1.1 vote_ballot=1.1 watermark=1 value=fill(V,7)
wait L/2
region promised=1.1 highest=1 trim=1
vote slot=1 ballot=1.1 value=hex:00
empty slot=2
outside slot=0
decided ballot=1.1 from=1 upto=0
lease ballot=1.1 left=L/2
heard node=1 ago=L/2
set PROMISED=1.1 LOCK=2
set slot=1 SLOT=W+1
overlap Prepare ballot=1.1 with Accept ballot=2.2 slot=1 value=\"a b\"
";

    #[test]
    fn what_is_read_is_written_the_same() {
        let cases = parse("story.txt", STORY).expect("a case");
        assert_eq!(cases.len(), 1);
        assert_eq!(cases[0].to_string(), STORY);
    }
}
