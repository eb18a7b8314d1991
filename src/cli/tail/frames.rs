//! Reads server-sent events (WHATWG HTML, section 9.2.6) as far as the live feed uses them.

use anyhow::bail;

/// Bytes of a line. The server's entries have some 100 KB at most; a longer line is not from this server.
const LINE_BYTES_MAX: usize = 16 << 20;

/// One event of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub name: String,
    pub data: String,
}

/// What has been received of the stream and is not yet a frame.
#[derive(Debug, Default)]
pub(super) struct Frames {
    line: Vec<u8>,
    name: String,
    data: String,
}

impl Frames {
    /// Adds received bytes, and returns the frames that are complete.
    ///
    /// # Errors
    /// A line is too long.
    pub(super) fn add(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<Frame>> {
        let mut frames = Vec::new();
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            self.line.extend_from_slice(part);
            if self.line.len() > LINE_BYTES_MAX {
                bail!("the server sent a line of more than {LINE_BYTES_MAX} bytes");
            }
            if parts.peek().is_some() {
                let line = std::mem::take(&mut self.line);
                frames.extend(self.end_line(String::from_utf8_lossy(&line).trim_end_matches('\r')));
            }
        }
        Ok(frames)
    }

    fn end_line(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            let frame = Frame { name: std::mem::take(&mut self.name), data: std::mem::take(&mut self.data) };
            return (!frame.data.is_empty()).then_some(frame);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" if self.data.is_empty() => value.clone_into(&mut self.data),
            "data" => {
                self.data.push('\n');
                self.data.push_str(value);
            }
            // A comment, or a field that the feed doesn't use.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_however_the_bytes_are_cut() {
        let stream = ":\n\nevent: a\ndata: {\"ä\":1}\n\nevent:b\r\ndata: 1\r\ndata: 2\r\n\r\nid: 7\n\nevent: c\ndata: unfinished";
        let frame = |name: &str, data: &str| Frame { name: name.to_owned(), data: data.to_owned() };
        for size in [1, 2, 3, 7, 1000] {
            let mut frames = Frames::default();
            let read: Vec<Frame> = stream.as_bytes().chunks(size).flat_map(|chunk| frames.add(chunk).unwrap()).collect();
            assert_eq!(read, [frame("a", "{\"ä\":1}"), frame("b", "1\n2")], "{size}");
        }
        assert!(Frames::default().add(&vec![b'x'; LINE_BYTES_MAX + 1]).is_err());
    }
}
