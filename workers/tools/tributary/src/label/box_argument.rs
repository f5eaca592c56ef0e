//! Reads a box of the command line: `LABEL LEFT,TOP,RIGHT,BOTTOM`.

use schemas::{BoundingBox, DetectedObject, check_objects};

/// The object that an argument names; its label may have spaces.
///
/// # Errors
/// One sentence that says what is wrong, and how a box is written.
pub(super) fn parse(text: &str) -> Result<DetectedObject, String> {
    const FORM: &str =
        "write LABEL LEFT,TOP,RIGHT,BOTTOM with fractions of the image, such as 'person 0.1,0.2,0.5,0.6'";
    let text = text.trim();
    let (label, edges) = text.rsplit_once(char::is_whitespace).ok_or_else(|| FORM.to_owned())?;
    let edges: Vec<f32> = edges
        .split(',')
        .map(|edge| edge.parse::<f32>().map_err(|_| format!("{edge:?} is not a number; {FORM}")))
        .collect::<Result<_, _>>()?;
    let edges: [f32; 4] = edges.try_into().map_err(|edges: Vec<f32>| format!("{} edges; {FORM}", edges.len()))?;
    let object = DetectedObject { label: label.trim().to_owned(), confidence: 1.0, bounds: BoundingBox::from(edges) };
    check_objects(std::slice::from_ref(&object)).map_err(|why| why.to_string())?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_a_label_and_four_edges() {
        let object = parse(" delivery van 0.1,0,0.5,1 ").unwrap();
        assert_eq!((object.label.as_str(), object.confidence), ("delivery van", 1.0));
        assert_eq!(<[f32; 4]>::from(object.bounds), [0.1, 0.0, 0.5, 1.0]);
    }

    #[test]
    fn anything_else_is_refused_with_an_example_or_the_range() {
        for (text, said) in [
            ("", "LABEL LEFT"),
            ("person", "LABEL LEFT"),
            ("0.1,0.2,0.5,0.6", "LABEL LEFT"),
            ("person 0.1,0.2,0.5", "3 edges"),
            ("person 0.1,0.2,0.5,x", "\"x\" is not a number"),
            ("person 0.1, 0.2, 0.5, 0.6", "1 edges"),
            ("person 10,20,50,60", "0 to 1"),
            ("person 0.5,0.2,0.1,0.6", "left < right"),
            ("person 0.1,NaN,0.5,0.6", "0 to 1"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(said), "{text}: {why}");
        }
        assert!(parse(&format!("{} 0,0,1,1", "x".repeat(257))).unwrap_err().contains("257 bytes"));
    }
}
