//! Integers as Redis reads them: one text for each number.

/// Reads a 64-bit integer; no space, plus sign, leading zero or negative zero.
pub(crate) fn parse(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        b"0" => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if !matches!(digits, [b'1'..=b'9', ..]) {
        return None;
    }
    digits.iter().try_fold(0i64, |value, digit| {
        let digit = i64::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
        let tens = value.checked_mul(10)?;
        if negative {
            tens.checked_sub(digit)
        } else {
            tens.checked_add(digit)
        }
    })
}

/// Reads a SCAN cursor: decimal digits, where none at all are the start.
pub(super) fn parse_cursor(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_one_text_is_a_number() {
        for text in [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "01",
            "-0",
            "1.0",
            "0x1",
            "9223372036854775808",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse(b"-9223372036854775809"), None);
    }

    proptest! {
        #[test]
        fn every_number_is_read_back(value: i64) {
            prop_assert_eq!(parse(value.to_string().as_bytes()), Some(value));
        }
    }
}
