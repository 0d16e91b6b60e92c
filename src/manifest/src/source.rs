//! A text and where its lines begin.

use std::sync::Arc;

use crate::diagnostic::Report;
use crate::tree::Span;

/// One file's text, as read; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Source(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    text: String,
    /// Byte offset of each line; the first is 0.
    lines: Vec<u32>,
    /// How many characters begin before each block of bytes, so that columns of long lines are found quickly.
    characters: Vec<u32>,
    /// Where the last line ends.
    end: usize,
}

/// Bytes in a block.
const BLOCK: usize = 1024;

impl Source {
    /// Checks that bytes are text in UTF-8 and finds its lines. What is not text is reported, with its place.
    pub(crate) fn decode(name: String, bytes: Vec<u8>, report: &mut Report) -> Option<Self> {
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || utf16(&bytes) {
            let hint = "save it as UTF-8".to_owned();
            report.whole(&name, "the text is in UTF-16 or UTF-32, not in UTF-8", Some(hint));
            return None;
        }
        let (mut text, invalid) = match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                // Everything before the first bad byte keeps its offset.
                (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(at))
            }
        };
        let mut shift = 0;
        if text.starts_with('\u{feff}') {
            shift = '\u{feff}'.len_utf8();
            text.drain(..shift);
        }
        let nul = text.find('\0');
        let source = Self::new(name, text);
        if let Some(at) = invalid {
            let at = at.saturating_sub(shift);
            report.at(&source, Span::new(at, at + 1), "this byte is not UTF-8", Some("save it as UTF-8".to_owned()));
            return None;
        }
        if let Some(at) = nul {
            report.at(&source, Span::new(at, at + 1), "a NUL byte is not allowed in a manifest", None);
            return None;
        }
        Some(source)
    }

    fn new(name: String, text: String) -> Self {
        let bytes = text.as_bytes();
        let mut lines = vec![0];
        for (index, byte) in bytes.iter().enumerate() {
            // YAML ends lines by LF, CR LF and CR.
            if *byte == b'\n' || (*byte == b'\r' && bytes.get(index + 1) != Some(&b'\n')) {
                lines.push(index as u32 + 1);
            }
        }
        let mut characters = Vec::with_capacity(bytes.len() / BLOCK + 1);
        let mut total = 0;
        for block in bytes.chunks(BLOCK) {
            characters.push(total);
            total += begun(block);
        }
        characters.push(total);
        let end = text.trim_end_matches(['\n', '\r']).len();
        Self(Arc::new(Inner { name, text, lines, characters, end }))
    }

    /// How many characters there are before an offset.
    fn characters(&self, offset: usize) -> u32 {
        let block = offset / BLOCK;
        self.0.characters[block] + begun(&self.text().as_bytes()[block * BLOCK..offset])
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn text(&self) -> &str {
        &self.0.text
    }

    /// The text of a span; empty when it is not one of this source.
    pub(crate) fn slice(&self, span: Span) -> &str {
        self.text().get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// Line and column of an offset, in characters from 1. The end of a text that ends with a line break is on its
    /// last line, so that a place is always one that an editor can show.
    pub(crate) fn place(&self, offset: u32) -> (u32, u32) {
        let offset = self.clip(offset);
        let line = self.line(offset);
        let column = self.characters(offset) - self.characters(self.0.lines[line] as usize) + 1;
        (line as u32 + 1, column)
    }

    /// The line an offset is in, without its end, as what comes before the offset and what follows.
    pub(crate) fn around(&self, offset: u32) -> (&str, &str) {
        let offset = self.clip(offset);
        let line = self.line(offset);
        let next = self.0.lines.get(line + 1).map_or(self.text().len(), |next| *next as usize);
        let start = self.0.lines[line] as usize;
        (&self.text()[start..offset], self.text()[offset..next].trim_end_matches(['\n', '\r']))
    }

    /// A byte offset at which a character begins, or the end of the last line.
    fn clip(&self, offset: u32) -> usize {
        let mut offset = offset as usize;
        if offset >= self.text().len() {
            return self.0.end;
        }
        while !self.text().is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    /// Index of the line that an offset is in.
    fn line(&self, offset: usize) -> usize {
        self.0.lines.partition_point(|start| *start as usize <= offset) - 1
    }
}

/// How many characters begin in a part of UTF-8.
fn begun(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|byte| !matches!(byte, 0x80..=0xbf)).count() as u32
}

/// Whether bytes without a mark look like two- or four-byte characters: one of the first two is zero in ASCII text then.
fn utf16(bytes: &[u8]) -> bool {
    match bytes {
        [0, second, ..] => *second != 0,
        [first, 0, ..] => first.is_ascii() && bytes.len().is_multiple_of(2) && bytes.get(3) == Some(&0),
        _ => false,
    }
}
