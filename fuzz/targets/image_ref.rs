//! Image references (`data-model.md` 12): the canonical form is read as the same reference, and quoting is undone.
#![no_main]

use bai_model::ImageRef;
use bai_model::image_ref::{quote, unquote};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    assert_eq!(unquote(&quote(text)), text);
    let known = ["registry.example:5000".to_owned()];
    let Ok(reference) = ImageRef::parse(text, &known) else {
        return;
    };
    let again = ImageRef::parse(&reference.canonical(), &[reference.registry.clone()]);
    assert_eq!(again.expect("a canonical reference can be read"), reference);
    let _ = (reference.short(), reference.tag_path(), reference.version());
    let _ = reference.platform_tags().count();
    assert!(!reference.precedes(&reference).unwrap_or(false));
});
