//! XML from cameras, which may be anything: a small tree within limits.
//!
//! In: bytes as a camera sent them. Out: elements by their local names, as every maker has prefixes of its own. Refused:
//! documents that are too large, too deep or of too many parts, and document types, whose entities can grow without end.

use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

/// Largest document, in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting. Cameras' answers have about 12 levels.
const MAX_DEPTH: usize = 48;
/// Most elements, and most attributes. A camera with 16 profiles sends about 2000 elements.
const MAX_PARTS: usize = 20_000;

/// Why a document is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum XmlError {
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("its elements are nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("it has more than {MAX_PARTS} elements or attributes")]
    TooMany,
    #[error("it has a document type, which no ONVIF message has")]
    DocumentType,
    #[error("it is no XML")]
    Malformed,
}

/// An element with all that is inside.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct XmlElement {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<XmlElement>,
}

impl XmlElement {
    /// Reads a document; returns its outermost element.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, XmlError> {
        if bytes.len() > MAX_BYTES {
            return Err(XmlError::TooLarge);
        }
        // Texts in other encodings lose their special letters, which are in names for people alone.
        let text = String::from_utf8_lossy(bytes);
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}').trim_start());
        // Some cameras do not escape the & in their addresses.
        reader.config_mut().allow_dangling_amp = true;
        let mut tree = XmlTree::default();
        loop {
            match reader.read_event().map_err(|_| XmlError::Malformed)? {
                Event::Start(tag) => tree.open(&tag)?,
                Event::Empty(tag) => {
                    tree.open(&tag)?;
                    tree.close()?;
                }
                Event::End(_) => tree.close()?,
                Event::Text(text) => tree.add_text(&String::from_utf8_lossy(&text)),
                Event::CData(text) => tree.add_text(&String::from_utf8_lossy(&text)),
                Event::GeneralRef(reference) => tree.add_text(&resolve(&reference)),
                Event::DocType(_) => return Err(XmlError::DocumentType),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        match tree {
            XmlTree { root: Some(root), open, .. } if open.is_empty() => Ok(root),
            _ => Err(XmlError::Malformed),
        }
    }

    /// Its name without the prefix.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its text without the white space around it, and without that of the elements inside.
    pub(super) fn text(&self) -> &str {
        self.text.trim()
    }

    /// An attribute, by its name without the prefix.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The elements directly inside.
    pub(super) fn children(&self) -> &[XmlElement] {
        &self.children
    }

    /// The first element of this name inside, at any depth.
    pub(super) fn find(&self, name: &str) -> Option<&XmlElement> {
        self.children.iter().find_map(|child| if child.name == name { Some(child) } else { child.find(name) })
    }

    /// The first element inside that is reached by these names, each inside the one before.
    pub(super) fn find_path(&self, names: &[&str]) -> Option<&XmlElement> {
        names.iter().try_fold(self, |element, name| element.find(name))
    }

    /// All elements of this name inside, except those inside another one of them.
    pub(super) fn find_all(&self, name: &str) -> Vec<&XmlElement> {
        let mut found = Vec::new();
        for child in &self.children {
            if child.name == name { found.push(child) } else { found.extend(child.find_all(name)) }
        }
        found
    }

    /// The text of the first element of this name inside, if it has any.
    pub(super) fn text_of(&self, name: &str) -> Option<&str> {
        self.find(name).map(XmlElement::text).filter(|text| !text.is_empty())
    }
}

/// A document that is being read.
#[derive(Default)]
struct XmlTree {
    root: Option<XmlElement>,
    open: Vec<XmlElement>,
    parts: usize,
}

impl XmlTree {
    fn open(&mut self, tag: &BytesStart) -> Result<(), XmlError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(XmlError::TooDeep);
        }
        let is_second_root = self.open.is_empty() && self.root.is_some();
        if is_second_root {
            return Err(XmlError::Malformed);
        }
        self.count_part()?;
        let local = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let mut element = XmlElement { name: local(tag.local_name().as_ref()), ..XmlElement::default() };
        // The check for duplicates takes quadratic time.
        for attribute in tag.attributes().with_checks(false) {
            let attribute = attribute.map_err(|_| XmlError::Malformed)?;
            self.count_part()?;
            let raw = String::from_utf8_lossy(&attribute.value);
            let value = quick_xml::escape::unescape(&raw).map_or_else(|_| raw.to_string(), |value| value.into_owned());
            element.attributes.push((local(attribute.key.local_name().as_ref()), value));
        }
        self.open.push(element);
        Ok(())
    }

    fn close(&mut self) -> Result<(), XmlError> {
        let element = self.open.pop().ok_or(XmlError::Malformed)?;
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None => self.root = Some(element),
        }
        Ok(())
    }

    fn add_text(&mut self, text: &str) {
        if let Some(element) = self.open.last_mut() {
            element.text.push_str(text);
        }
    }

    fn count_part(&mut self) -> Result<(), XmlError> {
        self.parts += 1;
        if self.parts > MAX_PARTS { Err(XmlError::TooMany) } else { Ok(()) }
    }
}

/// The character that a reference stands for. Entities of a document's own are left as they are written.
fn resolve(reference: &BytesRef) -> String {
    let name = String::from_utf8_lossy(reference);
    match (reference.resolve_char_ref(), &*name) {
        (Ok(Some(character)), _) => character.to_string(),
        (_, "amp") => "&".into(),
        (_, "lt") => "<".into(),
        (_, "gt") => ">".into(),
        (_, "quot") => "\"".into(),
        (_, "apos") => "'".into(),
        (_, other) => format!("&{other};"),
    }
}

/// A text as the content of an element or an attribute.
pub(super) fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<XmlElement, XmlError> {
        XmlElement::read(text.as_bytes())
    }

    #[test]
    fn elements_are_found_whatever_their_prefix() {
        for text in [
            "<s:E xmlns:s='a'><x:Profiles token='m'><x:Name>main</x:Name></x:Profiles></s:E>",
            "\u{feff}<?xml version='1.0'?>\n<E><Profiles y:token='m'><Name> main\n</Name></Profiles></E>",
            "<!-- c --><E><a><ns1:Profiles token=\"m\"><Name><![CDATA[main]]></Name></ns1:Profiles></a></E>",
        ] {
            let document = read(text).unwrap();
            let profile = document.find("Profiles").unwrap();
            assert_eq!((profile.attribute("token"), profile.text_of("Name")), (Some("m"), Some("main")), "{text}");
            assert_eq!(document.find_path(&["Profiles", "Name"]).unwrap().text(), "main");
        }
    }

    #[test]
    fn references_are_resolved_and_a_bare_ampersand_is_left() {
        let text = |xml: &str| read(xml).unwrap().text().to_owned();
        assert_eq!(text("<u>rtsp://c/?a=1&amp;b=2&#38;c=&#x33;</u>"), "rtsp://c/?a=1&b=2&c=3");
        assert_eq!(text("<u>rtsp://c/?a=1&b=2</u>"), "rtsp://c/?a=1&b=2");
        assert_eq!(text("<u>&lt;&gt;&quot;&apos;&unknown;</u>"), "<>\"'&unknown;");
        assert_eq!(read("<u a='1&amp;2'/>").unwrap().attribute("a"), Some("1&2"));
    }

    #[test]
    fn hostile_documents_are_refused_by_name() {
        let bomb = "<!DOCTYPE l [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;\">]><l>&b;</l>";
        assert_eq!(read(bomb), Err(XmlError::DocumentType));
        let outside = "<!DOCTYPE l SYSTEM \"file:///etc/passwd\"><l>&x;</l>";
        assert_eq!(read(outside), Err(XmlError::DocumentType));
        assert_eq!(read(&format!("<a>{}</a>", "x".repeat(10 << 20))), Err(XmlError::TooLarge));
        assert_eq!(read(&"<a>".repeat(100_000)), Err(XmlError::TooDeep));
        assert_eq!(read(&format!("<a>{}</a>", "<b/>".repeat(100_000))), Err(XmlError::TooMany));
        assert_eq!(read(&format!("<a {}/>", "b='' ".repeat(100_000))), Err(XmlError::TooMany));
        for text in ["", "plain", "<a>", "<a></b>", "</a>", "<a/><b/>", "<a b=></a>", "{\"json\": true}", "\0\0"] {
            assert_eq!(read(text), Err(XmlError::Malformed), "{text:?}");
        }
    }
}
