//! A producers' stream at a node that does not lead: its frames are passed on, in their order, and the leader's answers are passed back. What has
//! arrived together is one request.

use bytes::Bytes;
use tokio::time::Instant;

use super::{Answer, Round};
use crate::http::ingress::{Ingress, Item};
use crate::net::problem::Problem;
use crate::net::turns::Turns;
use crate::net::websocket::{self, Opcode};

/// Bytes of the frames of one request, but for its only one. A receipt may have ten times the bytes of its event, and the answer has to be within the
/// 1 MiB that a NATS server takes by default.
const REQUEST_BYTES: usize = 96 << 10;

impl Ingress {
    /// Has the node that leads answer these frames, and appends its answers.
    pub(super) async fn pass_on(&self, frames: &[Bytes], began: Instant, out: &mut Vec<u8>) {
        let mut rest = frames;
        while !rest.is_empty() {
            let (some, others) = rest.split_at(together(rest));
            rest = others;
            match self.node.cluster.forward_frames(some).await {
                Ok(Some(answers)) => answers.iter().for_each(|answer| websocket::encode(Opcode::Text, answer, out)),
                // This node leads since.
                Ok(None) => self.publish_frames(some, began).await.answer(began, &self.node.metrics, out).await,
                Err(why) => {
                    let problem = || Answer::One(Item::Problem(Problem::from(why.clone()).into_document()));
                    let round = Round { answers: some.iter().map(|_| problem()).collect(), ..Round::default() };
                    round.answer(began, &self.node.metrics, out).await;
                }
            }
        }
    }

    /// Publishes what frames hold that came by another node, and returns the answers.
    pub async fn answer_frames(&self, frames: Vec<Bytes>) -> Vec<Vec<u8>> {
        let (began, mut answers) = (Instant::now(), Vec::with_capacity(frames.len()));
        self.publish_frames(&frames, began).await.answers(began, &self.node.metrics, |text| answers.push(text.to_vec())).await;
        answers
    }

    async fn publish_frames(&self, frames: &[Bytes], began: Instant) -> Round<'_> {
        let (mut round, mut turns) = (Round::default(), Turns::default());
        for frame in frames {
            self.take(frame, began, &mut round).await;
            turns.take().await;
        }
        round
    }
}

/// Returns how many of the first frames go into one request: one at least.
fn together(frames: &[Bytes]) -> usize {
    let mut bytes = 0;
    let fitting = frames.iter().take_while(|frame| {
        bytes += frame.len();
        bytes <= REQUEST_BYTES
    });
    fitting.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_together_as_far_as_a_request_may_have_them() {
        let frame = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
        assert_eq!(together(&[frame(10), frame(REQUEST_BYTES - 10), frame(1)]), 2);
        assert_eq!(together(&[frame(REQUEST_BYTES + 1), frame(1)]), 1);
        assert_eq!(together(&[frame(1)]), 1);
    }
}
