//! A command's words, without a heap for the usual few.

use std::ops::Deref;

const FEW: usize = 8;

/// The words of one command; reads as a slice.
#[derive(Clone, Debug)]
pub struct Arguments<'a> {
    few: [&'a [u8]; FEW],
    count: usize,
    many: Vec<&'a [u8]>,
}

impl<'a> FromIterator<&'a [u8]> for Arguments<'a> {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(words: I) -> Self {
        let mut arguments = Self {
            few: [&[]; FEW],
            count: 0,
            many: Vec::new(),
        };
        for word in words {
            arguments.push(word);
        }
        arguments
    }
}

impl<'a> Arguments<'a> {
    fn push(&mut self, word: &'a [u8]) {
        if self.count < FEW {
            self.few[self.count] = word;
        } else {
            if self.count == FEW {
                self.many.extend_from_slice(&self.few);
            }
            self.many.push(word);
        }
        self.count += 1;
    }
}

impl<'a> Deref for Arguments<'a> {
    type Target = [&'a [u8]];

    fn deref(&self) -> &Self::Target {
        if self.count <= FEW {
            &self.few[..self.count]
        } else {
            &self.many
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_in_order_however_many() {
        let words: Vec<Vec<u8>> = (0..20u8).map(|n| vec![n; 3]).collect();
        for count in 0..words.len() {
            let arguments: Arguments<'_> = words[..count].iter().map(Vec::as_slice).collect();
            assert!(arguments.iter().eq(&words[..count]));
        }
    }
}
