//! A head: a model's last layers, separate from the rest, which turn features into scores.
//!
//! A head is a model folder like any other, whose picture is one row of features: `channels = "gray"`, `height_px = 1`,
//! and `width_px` is the number of features. In: what another model gives before its last layer. Out: one logit per
//! class. Refuses features of another length, and numbers that are not finite.

use std::sync::{Arc, Mutex, PoisonError};

use crate::inference::InferenceError;
use crate::model::Model;
use crate::session::{OnnxRuntime, Session, SessionError};

/// See the module. Clones share one session, used by one caller at a time, as a run takes microseconds.
#[derive(Debug, Clone)]
pub struct Head {
    session: Arc<Mutex<Session>>,
    model: Model,
    features: usize,
}

impl Head {
    /// Opens it on one thread.
    pub fn open(onnx: &OnnxRuntime, model: &Model) -> Result<Self, InferenceError> {
        let features = crate::tensor::len(&model.description.input);
        let session = Arc::new(Mutex::new(Session::open(onnx, model, 1)?));
        Ok(Self { session, model: model.clone(), features })
    }

    /// Logits of the classes. Blocks for a moment.
    pub fn scores(&self, features: &[f32]) -> Result<Vec<f32>, InferenceError> {
        let wrong = SessionError::WrongBatch {
            images: 1,
            actual_len: features.len(),
            expected_len: self.features,
            max_images: 1,
        };
        if features.len() != self.features || !features.iter().all(|feature| feature.is_finite()) {
            return Err(wrong.into());
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(session.run(features, 1)?.logits)
    }

    /// The head's model.
    pub fn model(&self) -> &Model {
        &self.model
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{fixture, onnx};
    use crate::{InferenceSettings, Replica};

    #[test]
    fn features_of_a_model_are_judged_and_others_are_refused() {
        let light = Model::load(&fixture("fashion-light")).unwrap();
        let head = Head::open(&onnx(), &Model::load(&fixture("fashion-head")).unwrap()).unwrap();
        let mut replica = Replica::open(&onnx(), &light, &InferenceSettings::default()).unwrap();
        let seen = replica.predict(&crate::sample::jpeg()).unwrap();
        let features = seen.features.unwrap();
        assert_eq!(head.scores(&features).unwrap().len(), light.labels.len());
        assert!(matches!(head.scores(&features[1..]), Err(InferenceError::Session(SessionError::WrongBatch { .. }))));
        let broken = vec![f32::NAN; features.len()];
        assert!(head.scores(&broken).is_err());
    }
}
