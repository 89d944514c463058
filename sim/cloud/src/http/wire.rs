//! A connection on which even what is no HTTP gets an error with a body.
//!
//! The HTTP library answers a request that it cannot read by itself, with a status and nothing else, before anybody of ours sees it. What it
//! writes passes through here, and that one answer is replaced. Everything else passes unchanged.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The body and its type in place of an answer without one, by its status.
pub(super) type Body = Box<dyn Fn(u16) -> (String, &'static str) + Send>;

/// A connection.
pub(super) struct Wire<IO> {
    io: IO,
    body: Body,
    /// What was put in place of something and is not written yet.
    pending: Vec<u8>,
}

impl<IO> Wire<IO> {
    pub(super) fn new(io: IO, body: Body) -> Self {
        Self { io, body, pending: Vec::new() }
    }

    /// `written` with its last answer replaced, if that is one of the library's own.
    fn replaced(&self, written: &[u8]) -> Option<Vec<u8>> {
        let start = written.windows(7).rposition(|window| window == b"HTTP/1.")?;
        let (before, answer) = written.split_at(start);
        let head = std::str::from_utf8(answer).ok()?.strip_suffix("\r\n\r\n")?;
        let (line, fields) = head.split_once("\r\n")?;
        let status: u16 = line.get(9..12)?.parse().ok()?;
        let empty = fields.split("\r\n").any(|field| field.eq_ignore_ascii_case("content-length: 0"));
        if !empty || !(400..500).contains(&status) {
            return None;
        }
        let (body, kind) = (self.body)(status);
        let mut text = before.to_vec();
        text.extend_from_slice(
            format!(
                "{line}\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
        Some(text)
    }
}

impl<IO: AsyncWrite + Unpin> Wire<IO> {
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.pending))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Wire<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Wire<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        match self.replaced(from) {
            None => Pin::new(&mut self.io).poll_write(cx, from),
            Some(text) => {
                // Taken as a whole; what does not go out now goes out when the connection is flushed.
                self.pending = text;
                match self.poll_pending(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Ready(Ok(from.len())),
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
