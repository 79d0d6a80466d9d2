//! Redis' glob patterns, over bytes.

/// Whether `text` matches `pattern` (`*`, `?`, `[a-z]`, `[^a]`, `\x`), as `SCAN MATCH` does.
///
/// A star that fails gives its place to the last star before it and never to an earlier one, so
/// the time is at most the product of the lengths.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            None => None,
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(_) => one(&pattern[p..], text[t]),
        };
        match (step, &mut star) {
            (Some(bytes), _) => {
                p += bytes;
                t += 1;
            }
            (None, Some((after, from))) => {
                *from += 1;
                (p, t) = (*after, *from);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How long the pattern's first item is, if it matches `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    let (bytes, matched) = match *pattern {
        [b'?', ..] => (1, true),
        [b'\\', escaped, ..] => (2, escaped == byte),
        [b'[', ..] => class(pattern, byte),
        [literal, ..] => (1, literal == byte),
        [] => return None,
    };
    matched.then_some(bytes)
}

fn class(pattern: &[u8], byte: u8) -> (usize, bool) {
    let negated = pattern.get(1) == Some(&b'^');
    let mut at = if negated { 2 } else { 1 };
    let mut found = false;
    loop {
        match pattern[at..] {
            // A class without an end reaches to the end of the pattern.
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                found |= escaped == byte;
                at += 2;
            }
            [low, b'-', high, ..] => {
                found |= (low.min(high)..=low.max(high)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= literal == byte;
                at += 1;
            }
        }
    }
    (at, found != negated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_what_redis_documents() {
        let cases: [(&str, &str, bool); 16] = [
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h*llo", "hllo", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hello", false),
            ("h[^e]llo", "hbllo", true),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hbllo", true),
            ("h\\?llo", "h?llo", true),
            ("h\\?llo", "hello", false),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxcxxb", false),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn many_stars_take_no_longer_than_the_product_of_the_lengths() {
        let pattern = b"*a".repeat(2000);
        assert!(!matches(
            &pattern,
            &[b"a".repeat(1999), b"b".repeat(2000)].concat()
        ));
    }

    proptest! {
        #[test]
        fn every_text_matches_itself_escaped(text: Vec<u8>) {
            let pattern: Vec<u8> = text.iter().flat_map(|byte| [b'\\', *byte]).collect();
            prop_assert!(matches(&pattern, &text));
        }

        #[test]
        fn no_pattern_panics(pattern in "[a\\[\\]\\\\^*?-]{0,12}", text in "[ab\\]-]{0,8}") {
            let _ = matches(pattern.as_bytes(), text.as_bytes());
        }
    }
}
