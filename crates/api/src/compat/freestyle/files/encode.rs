//! A file's content as JSON, piece by piece, so that no file is held as a whole.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use warren_model::access::ByteStream;

/// `{"encoding":"base64","content":"..."}`
pub(super) fn as_json(content: ByteStream) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let begin = futures::stream::iter([Ok(Bytes::from_static(br#"{"encoding":"base64","content":""#))]);
    // Three bytes are four characters, so what is left over of a piece waits for the next one.
    let middle = futures::stream::unfold(Some((content, Vec::new())), |state| async move {
        let (mut content, mut waiting) = state?;
        match content.next().await {
            Some(Ok(piece)) => {
                waiting.extend_from_slice(&piece);
                let rest = waiting.split_off(waiting.len() - waiting.len() % 3);
                Some((Ok(STANDARD.encode(&waiting).into()), Some((content, rest))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Ok((STANDARD.encode(&waiting) + r#""}"#).into()), None)),
        }
    });
    begin.chain(middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn encoded(pieces: &[&'static str]) -> serde_json::Value {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from(*piece))).collect();
        let text: Vec<Bytes> =
            as_json(futures::stream::iter(pieces).boxed()).map(|piece| piece.unwrap()).collect().await;
        serde_json::from_slice(&text.concat()).unwrap()
    }

    #[tokio::test]
    async fn however_the_content_is_cut_it_reads_the_same() {
        for pieces in [vec!["hello"], vec!["h", "", "el", "lo"], vec!["hell", "o"]] {
            assert_eq!(encoded(&pieces).await, serde_json::json!({ "encoding": "base64", "content": "aGVsbG8=" }));
        }
        assert_eq!(encoded(&[]).await["content"], "");
    }

    #[tokio::test]
    async fn content_that_breaks_off_is_not_ended() {
        let broken =
            futures::stream::iter([Ok(Bytes::from_static(b"abc")), Err(std::io::ErrorKind::BrokenPipe.into())]);
        let pieces: Vec<_> = as_json(broken.boxed()).collect().await;
        assert!(pieces.last().unwrap().is_err());
    }
}
