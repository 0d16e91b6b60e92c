//! Trace contexts as text, `00-<trace>-<span>-<flags>`, the form in which they travel between processes and are stored.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of spans that become traces. Spans of other targets never leave the process.
pub const TARGET: &str = "ostler::trace";

/// The context of a span, for whoever goes on with the trace. None when the span is not recorded.
pub fn traceparent(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let inner = context.span();
    let context = inner.span_context();
    context
        .is_valid()
        .then(|| format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8()))
}

/// Makes a span that was just opened the child of a context of another process or an earlier time. Text that is no
/// context is ignored: it may come from anywhere.
pub fn child_of(span: &Span, traceparent: &str) {
    if !span.is_disabled()
        && let Some(context) = parse(traceparent)
    {
        // Refused only for a span that has begun to be used, which ours has not.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(context));
    }
}

/// Notes in a span that it is related to a context of another trace.
pub fn link(span: &Span, traceparent: &str) {
    if !span.is_disabled()
        && let Some(context) = parse(traceparent)
    {
        span.add_link(context);
    }
}

fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known = version.len() == 2 && version != "ff" && (version != "00" || parts.next().is_none());
    let shaped = trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    let lower = text.bytes().all(|byte| !byte.is_ascii_uppercase());
    if !known || !shaped || !lower {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_contexts_are_taken_for_contexts() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = parse(good).unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        // A later version may have more parts.
        assert!(parse(&format!("01{}-x", &good[2..])).is_some());
        for bad in [
            "",
            "00-0-0-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_span_that_nobody_records_has_no_context() {
        let span = tracing::info_span!(target: TARGET, "x");
        child_of(&span, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(traceparent(&span), None);
    }
}
