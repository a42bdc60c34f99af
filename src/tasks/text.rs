//! Text as sequences of characters, for language models (`mesa` appendix G, at small scale).

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::array_len;
use crate::ops::lane_products::OnLanes;
use crate::ops::sequence_transformer::LaneBatch;
use crate::rng::stream;
use crate::{Error, Result};

/// The characters of a text, in the order of their numbers.
pub const ALPHABET: &str = "\n !&',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz";

/// A text as numbers of characters in [`ALPHABET`].
///
/// ```
/// use incontext::tasks::Text;
/// let text = Text::new("**ROMEO**  \nAy me!")?;
/// assert_eq!(text.to_string(), "ROMEO\nAy me!");
/// assert_eq!(text.windows(2, 4, 0)?.shape(), [2, 4]);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    characters: Vec<u8>,
}

/// A batch of pieces of a text: T characters each, and the one that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    batch: usize,
    tokens: usize,
    /// `[batch, tokens + 1]`.
    characters: Vec<u8>,
}

impl Text {
    /// The characters of `text` that are in [`ALPHABET`]; the others, Markdown's signs among them, are left out, and so
    /// are spaces at the end of a line and repeated empty lines.
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing is left.
    pub fn new(text: &str) -> Result<Self> {
        let mut characters = Vec::with_capacity(text.len());
        let mut empty = 0;
        for line in text.lines() {
            let line: String = line.chars().filter(|c| ALPHABET.contains(*c)).collect();
            let line = line.trim();
            empty = if line.is_empty() { empty + 1 } else { 0 };
            if empty < 2 {
                characters.extend(line.chars().filter_map(number));
                characters.push(0);
            }
        }
        while characters.last() == Some(&0) {
            characters.pop();
        }
        if characters.is_empty() {
            return Err(Error::invalid("text", "no character of the alphabet", "some"));
        }
        Ok(Text { characters })
    }

    /// Texts one after the other, an empty line between them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no text.
    pub fn join<'a>(texts: impl IntoIterator<Item = &'a Text>) -> Result<Self> {
        let all: Vec<&[u8]> = texts.into_iter().map(|t| t.characters.as_slice()).collect();
        if all.is_empty() {
            return Err(Error::invalid("texts", 0, "at least 1"));
        }
        Ok(Text { characters: all.join(&[0, 0][..]) })
    }

    /// Number of characters.
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// Whether there are none (never, by construction).
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    /// CRC-32 of the characters' numbers: what identifies a text in a manifest.
    pub fn checksum(&self) -> u32 {
        crc32fast::hash(&self.characters)
    }

    /// `batch` pieces of T = `tokens` characters and the next one, from places drawn uniformly; a function of `seed`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty batch, no tokens, or a text that is shorter than a piece.
    pub fn windows(&self, batch: usize, tokens: usize, seed: u64) -> Result<Windows> {
        let last = tokens.checked_add(1).and_then(|length| self.len().checked_sub(length));
        let Some(last) = last.filter(|_| batch > 0 && tokens > 0) else {
            let expected = format!("a batch of 1 or more, and 1 to {} tokens", self.len() - 1);
            return Err(Error::invalid("batch and tokens", format!("{batch}, {tokens}"), expected));
        };
        let mut characters = Vec::with_capacity(array_len::<u8>("pieces of text", &[batch, tokens + 1])?);
        let mut rng = stream(seed, "text", 0);
        for _ in 0..batch {
            let at = rng.gen_range(0..=last);
            characters.extend_from_slice(&self.characters[at..=at + tokens]);
        }
        Ok(Windows { batch, tokens, characters })
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&letters(&self.characters))
    }
}

/// The number of a character; `None` if it has none.
fn number(c: char) -> Option<u8> {
    ALPHABET.chars().position(|a| a == c).map(|i| i as u8)
}

fn letters(characters: &[u8]) -> String {
    characters.iter().filter_map(|c| ALPHABET.as_bytes().get(usize::from(*c)).map(|c| char::from(*c))).collect()
}

impl Windows {
    /// Pieces from numbers of characters, `[batch, tokens + 1]` row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] unless they fill the shape, which has no side of 0; [`Error::Invalid`] for a number beyond the
    /// alphabet.
    pub fn new(batch: usize, tokens: usize, characters: Vec<u8>) -> Result<Self> {
        let length = tokens.checked_add(1).filter(|_| batch > 0 && tokens > 0);
        if length.and_then(|length| batch.checked_mul(length)) != Some(characters.len()) {
            let expected = format!("[{batch}, {tokens} + 1], none 0");
            return Err(Error::shape("pieces of text", &[characters.len()], expected));
        }
        if let Some(bad) = characters.iter().find(|c| usize::from(**c) >= ALPHABET.len()) {
            return Err(Error::invalid("number of a character", bad, format!("below {}", ALPHABET.len())));
        }
        Ok(Windows { batch, tokens, characters })
    }

    /// `[batch, tokens]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.batch, self.tokens]
    }

    /// The numbers of the characters, `[batch, tokens + 1]` row-major.
    pub fn characters(&self) -> &[u8] {
        &self.characters
    }

    /// The first `count` pieces, or all if there are fewer.
    ///
    /// # Errors
    /// [`Error::Shape`] for none.
    pub fn first(&self, count: usize) -> Result<Windows> {
        let batch = count.min(self.batch);
        Windows::new(batch, self.tokens, self.characters[..batch * (self.tokens + 1)].to_vec())
    }

    /// Piece `i`, to be read.
    ///
    /// # Panics
    /// If there is no piece `i`, like indexing a slice.
    pub fn piece(&self, i: usize) -> String {
        letters(&self.characters[i * (self.tokens + 1)..][..=self.tokens])
    }

    /// What a model reads: characters as unit vectors, `[batch, tokens, alphabet]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they do not fit in memory.
    pub fn inputs<T: OnLanes>(&self) -> Result<LaneBatch<T>> {
        self.unit_vectors(0)
    }

    /// The characters that follow, as unit vectors, `[batch, tokens, alphabet]`.
    ///
    /// # Errors
    /// As [`Windows::inputs`].
    pub fn targets<T: OnLanes>(&self) -> Result<LaneBatch<T>> {
        self.unit_vectors(1)
    }

    fn unit_vectors<T: OnLanes>(&self, from: usize) -> Result<LaneBatch<T>> {
        let size = ALPHABET.len();
        let mut values = vec![0.0; array_len::<f64>("tokens", &[self.batch, self.tokens, size])?];
        let following = self.characters.chunks(self.tokens + 1).flat_map(|piece| &piece[from..][..self.tokens]);
        values.chunks_mut(size).zip(following).for_each(|(out, c)| out[usize::from(*c)] = 1.0);
        LaneBatch::new(self.batch, self.tokens, size, &values)
    }

    /// The mean over the pieces of −ln p(next character) at every token, in nats, for logits `[batch, tokens, alphabet]`:
    /// `[tokens]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the logits have another shape.
    pub fn losses(&self, logits: &[f64]) -> Result<Vec<f64>> {
        let size = ALPHABET.len();
        if logits.len() != self.batch * self.tokens * size {
            let expected = format!("[{}, {}, {size}]", self.batch, self.tokens);
            return Err(Error::shape("logits", &[logits.len()], expected));
        }
        let mut losses = vec![0.0; self.tokens];
        let pieces = self.characters.chunks(self.tokens + 1).zip(logits.chunks(self.tokens * size));
        for (piece, logits) in pieces {
            for (t, (logits, loss)) in logits.chunks(size).zip(&mut losses).enumerate() {
                let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
                *loss += (sum.ln() + most - logits[usize::from(piece[t + 1])]) / self.batch as f64;
            }
        }
        Ok(losses)
    }
}
