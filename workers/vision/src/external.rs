//! External: what an ONNX graph asks for outside itself: other files of weights, and sets of operators. Pure.
//!
//! Large models are exported as a graph and one or more files of weights beside it. They are part
//! of the model: without them it does not load, with others it is another model. Only the few
//! protobuf fields on the way to a tensor's `external_data` are read.

use std::collections::{BTreeMap, BTreeSet};

/// How deep graphs may nest inside `If` and `Loop` nodes. A guess, far beyond real models.
const MAX_DEPTH: usize = 64;

/// The messages of `onnx.proto` on the way, and which fields lead on.
#[derive(Clone, Copy)]
enum At {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Function,
    TrainingInfo,
    Entry,
}

impl At {
    fn field(self, number: u64) -> Option<At> {
        match (self, number) {
            (At::Model, 7) => Some(At::Graph),
            (At::Model, 20) => Some(At::TrainingInfo),
            (At::Model, 25) => Some(At::Function),
            (At::TrainingInfo, 1 | 2) => Some(At::Graph),
            (At::Function, 7) | (At::Graph, 1) => Some(At::Node),
            (At::Graph, 5) => Some(At::Tensor),
            (At::Graph, 15) => Some(At::SparseTensor),
            (At::Node, 5) => Some(At::Attribute),
            (At::Attribute, 5 | 10) => Some(At::Tensor),
            (At::Attribute, 6 | 11) => Some(At::Graph),
            (At::Attribute, 22 | 23) => Some(At::SparseTensor),
            (At::SparseTensor, 1 | 2) => Some(At::Tensor),
            (At::Tensor, 13) => Some(At::Entry),
            _ => None,
        }
    }
}

/// The locations named by the graph's tensors, sorted, each once; or why the bytes are no graph.
pub(crate) fn locations(model: &[u8]) -> Result<BTreeSet<String>, &'static str> {
    let mut found = BTreeSet::new();
    walk(model, At::Model, 0, &mut found)?;
    Ok(found)
}

fn walk(bytes: &[u8], at: At, depth: usize, found: &mut BTreeSet<String>) -> Result<(), &'static str> {
    if depth > MAX_DEPTH {
        return Err("it is nested too deeply");
    }
    let mut rest = bytes;
    let (mut key, mut value) = (None, None);
    while !rest.is_empty() {
        let (number, content) = field(&mut rest).ok_or("it is not an ONNX graph, or cut off")?;
        let Some(content) = content else { continue };
        match (at, number) {
            (At::Entry, 1) => key = Some(content),
            (At::Entry, 2) => value = Some(content),
            _ => {
                if let Some(next) = at.field(number) {
                    walk(content, next, depth + 1, found)?;
                }
            }
        }
    }
    if let (Some(b"location"), Some(value)) = (key, value) {
        found.insert(String::from_utf8_lossy(value).into_owned());
    }
    Ok(())
}

/// The sets of operators that the graph is written in, each with its version; the standard one is called `ai.onnx`.
pub(crate) fn operators(model: &[u8]) -> Result<BTreeMap<String, u64>, &'static str> {
    const CUT_OFF: &str = "it is not an ONNX graph, or cut off";
    let mut found = BTreeMap::new();
    let mut rest = model;
    while !rest.is_empty() {
        let (number, content) = field(&mut rest).ok_or(CUT_OFF)?;
        let Some(mut set) = content.filter(|_| number == OPERATOR_SET) else { continue };
        let (mut domain, mut version) = (String::new(), 0);
        while !set.is_empty() {
            let key = varint(&mut set).ok_or(CUT_OFF)?;
            match (key >> 3, key & 7) {
                (1, 2) => {
                    let len = varint(&mut set).and_then(|len| usize::try_from(len).ok()).ok_or(CUT_OFF)?;
                    domain = String::from_utf8_lossy(take(&mut set, len).ok_or(CUT_OFF)?).into_owned();
                }
                (2, 0) => version = varint(&mut set).ok_or(CUT_OFF)?,
                _ => return Err(CUT_OFF),
            }
        }
        let standard = domain.is_empty().then(|| "ai.onnx".to_owned());
        found.insert(standard.unwrap_or(domain), version);
    }
    Ok(found)
}

/// Field of a model with a set of operators.
const OPERATOR_SET: u64 = 8;

/// One field: its number, and its content if that is a message or a text.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let tag = varint(rest)?;
    let number = tag >> 3;
    let content = match tag & 7 {
        0 => varint(rest).map(|_| None)?,
        1 => take(rest, 8).map(|_| None)?,
        2 => {
            let len = usize::try_from(varint(rest)?).ok()?;
            Some(take(rest, len)?)
        }
        5 => take(rest, 4).map(|_| None)?,
        _ => return None,
    };
    Some((number, content))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fixtures_name_their_operators() {
        let graph = std::fs::read(crate::session::tests::fixture("fashion-light").join("graph.onnx")).unwrap();
        assert_eq!(operators(&graph).unwrap(), [("ai.onnx".to_owned(), 17)].into());
        assert!(operators(&graph[..graph.len() - 1]).is_err());
    }

    fn message(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    fn tensor(location: &str) -> Vec<u8> {
        let entry = |key: &str, value: &str| [message(1, key.as_bytes()), message(2, value.as_bytes())].concat();
        [message(13, &entry("location", location)), message(13, &entry("offset", "4096"))].concat()
    }

    #[test]
    fn weights_kept_outside_are_found_in_initializers_and_in_nested_graphs() {
        let nested = message(5, &tensor("deep/b.bin"));
        let node = message(5, &message(6, &nested));
        let graph = [message(5, &tensor("a.bin")), message(5, &tensor("a.bin")), message(1, &node)].concat();
        let found = locations(&message(7, &graph)).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a.bin", "deep/b.bin"]);
    }

    #[test]
    fn a_graph_cut_off_is_refused() {
        let graph = message(7, &message(5, &tensor("a.bin")));
        assert!(locations(&graph[..graph.len() - 3]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = locations(&bytes);
        }
    }
}
