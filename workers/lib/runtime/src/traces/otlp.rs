//! Spans in OTLP's protobuf encoding: the parts of opentelemetry/proto/trace/v1/trace.proto that we use.

use prost::{Message, Oneof};

use super::span::{FinishedSpan, SpanKind, SpanValue};

/// Flags of a span: bit 0 says sampled, bit 8 that bit 9 is valid, bit 9 that the parent is in another process.
const SAMPLED: u32 = 1;
const PARENT_KNOWN: u32 = 0x100;
const PARENT_REMOTE: u32 = 0x200;
const STATUS_ERROR: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "AnyValueKind", tags = "1, 3")]
    value: Option<AnyValueKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum AnyValueKind {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
}

/// Encodes the request that sends spans, grouped by service.
pub(super) fn encode_request(spans: Vec<FinishedSpan>) -> Vec<u8> {
    let mut services: Vec<(&'static str, Vec<Span>)> = Vec::new();
    for span in spans {
        let service = span.service;
        match services.iter_mut().find(|(known, _)| *known == service) {
            Some((_, spans)) => spans.push(span.into()),
            None => services.push((service, vec![span.into()])),
        }
    }
    let resource_spans = services.into_iter().map(|(service, spans)| ResourceSpans {
        resource: Some(Resource {
            attributes: vec![
                text("service.name", service),
                text("service.namespace", "tributary"),
                text("service.version", env!("CARGO_PKG_VERSION")),
            ],
        }),
        scope_spans: vec![ScopeSpans {
            scope: Some(Scope { name: "tributary".into(), version: env!("CARGO_PKG_VERSION").into() }),
            spans,
        }],
    });
    ExportRequest { resource_spans: resource_spans.collect() }.encode_to_vec()
}

/// Number of spans that a collector refused; 0 if its response cannot be decoded.
pub(super) fn rejected_spans(response: &[u8]) -> u64 {
    let response = ExportResponse::decode(response).unwrap_or_default();
    response.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0))
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, SpanValue::Text(value.into()))
}

fn attribute(key: &str, value: SpanValue) -> KeyValue {
    let value = match value {
        SpanValue::Text(text) => AnyValueKind::Text(text),
        SpanValue::Number(number) => AnyValueKind::Number(i64::try_from(number).unwrap_or(i64::MAX)),
    };
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }) }
}

impl From<FinishedSpan> for Span {
    fn from(span: FinishedSpan) -> Self {
        let remote = if span.kind == SpanKind::Consumer && span.parent_id.is_some() { PARENT_REMOTE } else { 0 };
        Self {
            trace_id: span.trace_id.to_vec(),
            span_id: span.span_id.to_vec(),
            parent_span_id: span.parent_id.map_or_else(Vec::new, |id| id.to_vec()),
            name: span.name.into(),
            kind: match span.kind {
                SpanKind::Internal => 1,
                SpanKind::Producer => 4,
                SpanKind::Consumer => 5,
            },
            start_time_unix_nano: span.start_ns,
            end_time_unix_nano: span.end_ns,
            attributes: span.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
            status: span.fault.map(|message| Status { message, code: STATUS_ERROR }),
            flags: SAMPLED | PARENT_KNOWN | remote,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_equals_one_encoded_with_opentelemetrys_own_definitions() {
        fn ids<const N: usize>(first: u8) -> [u8; N] {
            std::array::from_fn(|at| first + at as u8)
        }
        let recognize = FinishedSpan {
            trace_id: ids(1),
            span_id: ids(21),
            parent_id: Some(ids(31)),
            service: "recognizer",
            name: "recognize",
            kind: SpanKind::Consumer,
            start_ns: 1_700_000_000_000_000_001,
            end_ns: 1_700_000_000_005_000_002,
            attributes: vec![
                ("tributary.site", SpanValue::Text("reef".into())),
                ("tributary.attempts", SpanValue::Number(2)),
            ],
            fault: Some("image_truncated".into()),
        };
        let publish = FinishedSpan {
            trace_id: ids(41),
            span_id: ids(61),
            parent_id: None,
            service: "publisher",
            name: "publish",
            kind: SpanKind::Producer,
            start_ns: 5,
            end_ns: 6,
            attributes: Vec::new(),
            fault: None,
        };
        let written = include_bytes!("../../../../../fixtures/traces/spans.otlp");
        assert_eq!(encode_request(vec![recognize, publish]), written);
    }

    #[test]
    fn refused_spans_are_read_and_an_invalid_response_counts_none() {
        let refused = ExportResponse { partial_success: Some(PartialSuccess { rejected_spans: 3 }) };
        assert_eq!(rejected_spans(&refused.encode_to_vec()), 3);
        assert_eq!(rejected_spans(b""), 0);
        assert_eq!(rejected_spans(b"<html>404</html>"), 0);
    }
}
