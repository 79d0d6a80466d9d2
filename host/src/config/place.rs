//! Where in a configuration something stands.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// A place that an error points at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A file as a whole.
    File(PathBuf),
    /// A line and a column of a file, both from 1; columns count characters.
    Text {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// A flag, or the environment variable that stands for it.
    Flag(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Text { path, line, column } => {
                write!(f, "{}:{line}:{column}", path.display())
            }
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

impl Place {
    /// Byte `at` of the file's text.
    pub(super) fn in_text(path: &Path, text: &str, at: usize) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Self::Text {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// One step on the way to a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Key(&'static str),
    Item(usize),
}

/// The bytes at the end of the way, or as far along it as the document goes; `None` if not even
/// the first step is there.
pub(super) fn find(document: &DeTable<'_>, way: &[Step]) -> Option<Range<usize>> {
    let (first, rest) = way.split_first()?;
    let Step::Key(key) = first else { return None };
    let mut value = document.get(*key)?;
    for step in rest {
        let next = match (step, value.get_ref()) {
            (Step::Key(key), DeValue::Table(table)) => table.get(*key),
            (Step::Item(index), DeValue::Array(items)) => items.get(*index),
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => break,
        }
    }
    Some(value.span())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let text = "a = 1\nb = \"µ\" x";
        let at = text.find('x').expect("an x");
        let place = Place::in_text(Path::new("f"), text, at);
        assert_eq!(place.to_string(), "f:2:9");
        assert_eq!(Place::in_text(Path::new("f"), text, 0).to_string(), "f:1:1");
    }

    #[test]
    fn a_way_ends_where_the_document_does() {
        let text = "[[peer]]\nnode = 1\n[[peer]]\nnode = 25\n";
        let document = DeTable::parse(text).expect("TOML");
        let way = [Step::Key("peer"), Step::Item(1), Step::Key("node")];
        let found = find(document.get_ref(), &way).expect("a span");
        assert_eq!(&text[found], "25");
        assert!(find(document.get_ref(), &[Step::Key("resp")]).is_none());
    }
}
