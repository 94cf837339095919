//! The tables of `data-model.md` 12, row by row, and of the agent protocol's appendix C.

use proptest::prelude::*;

use super::*;

fn known(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn parse(text: &str) -> ImageRef {
    ImageRef::parse(text, &[]).expect("the tables hold valid references")
}

/// `data-model.md` 12.1: input, known registries, registry, name, tag.
#[test]
fn parsing() {
    for (text, registries, registry, name, tag) in [
        ("lua", &[][..], "index.docker.io", "lablup/lua", "latest"),
        (
            "lua:5.3-alpine3.8",
            &[],
            "index.docker.io",
            "lablup/lua",
            "5.3-alpine3.8",
        ),
        (
            "python-tensorflow:1.12-py36-cuda9",
            &[],
            "index.docker.io",
            "lablup/python-tensorflow",
            "1.12-py36-cuda9",
        ),
        (
            "lua:latest-dense-gpu",
            &[],
            "index.docker.io",
            "lablup/lua",
            "latest-dense-gpu",
        ),
        ("user/lua", &[], "index.docker.io", "user/lua", "latest"),
        ("index.docker.io/lua:1", &[], "index.docker.io", "lablup/lua", "1"),
        (
            "index.docker.io/user/lua:1",
            &[],
            "index.docker.io",
            "user/lua",
            "1",
        ),
        ("docker.io/lua:1", &["docker.io"], "docker.io", "lablup/lua", "1"),
        ("docker.io/lua:1", &[], "index.docker.io", "docker.io/lua", "1"),
        (
            "eu.docker.io/lua:1",
            &["eu.docker.io"],
            "eu.docker.io",
            "lablup/lua",
            "1",
        ),
        (
            "my.reg:5000/foo",
            &["my.reg:5000"],
            "my.reg:5000",
            "foo",
            "latest",
        ),
        (
            "my.reg:5000/foo:1",
            &[],
            "index.docker.io",
            "my.reg:5000/foo",
            "1",
        ),
        ("127.0.0.1:5000/foo:1", &[], "127.0.0.1:5000", "foo", "1"),
        ("127.0.0.1/foo:1", &[], "127.0.0.1", "foo", "1"),
        ("[::1]:5000/foo:1", &[], "[::1]:5000", "foo", "1"),
        ("[::1]/foo:1", &[], "[::1]", "foo", "1"),
        (
            "localhost:5000/foo:1",
            &[],
            "index.docker.io",
            "localhost:5000/foo",
            "1",
        ),
        ("a/b/c:1", &[], "index.docker.io", "a/b/c", "1"),
        ("python:3.6", &[], "index.docker.io", "lablup/python", "3.6"),
        (
            "registry.local:5000/lablup/python:3.6",
            &["registry.local:5000"],
            "registry.local:5000",
            "lablup/python",
            "3.6",
        ),
        ("127.0.0.1:5000/x/y:z", &[], "127.0.0.1:5000", "x/y", "z"),
    ] {
        let expected = ImageRef {
            registry: registry.into(),
            name: name.into(),
            tag: tag.into(),
        };
        assert_eq!(ImageRef::parse(text, &known(registries)), Ok(expected), "{text}");
    }
}

#[test]
fn refusals() {
    for text in ["https://x/lua", "//lua", "lua://"] {
        assert_eq!(ImageRef::parse(text, &[]), Err(ImageRefError::Scheme), "{text}");
    }
    for text in ["", ":1", "127.0.0.1/", "127.0.0.1/:1"] {
        assert_eq!(
            ImageRef::parse(text, &[]),
            Err(ImageRefError::EmptyName),
            "{text}"
        );
    }
    for text in [
        "lua:",
        "lua:-x",
        "lua:x-",
        "lua:1.0-py36-",
        "lua:1\n",
        "lua:é",
        "my.reg:5000/foo",
    ] {
        assert_eq!(
            ImageRef::parse(text, &[]),
            Err(ImageRefError::InvalidTag),
            "{text}"
        );
    }
    for (text, piece) in [
        ("lua:1.0-36", "36"),
        ("lua:1.0-py_36", "py_36"),
        ("lua:1.0--x", ""),
        ("lua:3.6-18.04", "18.04"),
        ("lua:1-py3.", "py3."),
        ("lua:1-py3.x", "py3.x"),
        ("lua:1-py3A", "py3A"),
    ] {
        // A tag may not end in a dot, so one more piece follows.
        let text = if text.ends_with('.') {
            format!("{text}-x")
        } else {
            text.to_owned()
        };
        assert_eq!(
            ImageRef::parse(&text, &[]),
            Err(ImageRefError::InvalidTagVersion(piece.into())),
            "{text}"
        );
    }
    for (text, piece) in [
        ("lua:1-py36-py37", "py37"),
        ("lua:1-py36-py36", "py36"),
        ("lua:1-py-py", "py"),
    ] {
        assert_eq!(
            ImageRef::parse(text, &[]),
            Err(ImageRefError::DuplicatePlatformTag(piece.into()))
        );
    }
    for (error, message) in [
        (
            ImageRefError::Scheme,
            "ImageRef should not contain the protocol scheme.",
        ),
        (ImageRefError::EmptyName, "Empty image repository/name"),
        (ImageRefError::InvalidTag, "Invalid image tag"),
        (
            ImageRefError::InvalidTagVersion("36".into()),
            "('invalid tag-version string', '36')",
        ),
        (
            ImageRefError::DuplicatePlatformTag("py".into()),
            "('duplicate platform tag with different versions', 'py')",
        ),
    ] {
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn versions_and_platform_tags() {
    for (text, version, tags) in [
        ("lua", "latest", &[][..]),
        ("lua:5.3-alpine3.8", "5.3", &[("alpine", "3.8")]),
        (
            "python-tensorflow:1.12-py36-cuda9",
            "1.12",
            &[("py", "36"), ("cuda", "9")],
        ),
        ("lua:latest-dense-gpu", "latest", &[("dense", ""), ("gpu", "")]),
        ("lua:1-tf1.2.0rc1", "1", &[("tf", "1.2.0rc1")]),
    ] {
        let image = parse(text);
        assert_eq!(image.version(), version);
        assert_eq!(image.platform_tags().collect::<Vec<_>>(), tags);
    }
}

#[test]
fn texts() {
    let image = parse("lua:5.3-alpine3.8");
    assert_eq!(image.canonical(), "index.docker.io/lablup/lua:5.3-alpine3.8");
    assert_eq!(image.to_string(), image.canonical());
    assert_eq!(image.short(), "lablup/lua:5.3-alpine3.8");
    assert_eq!(
        image.tag_path(),
        "images/index.docker.io/lablup%2Flua/5.3-alpine3.8"
    );
    assert_eq!(
        parse("127.0.0.1:5000/foo:1").tag_path(),
        "images/127.0.0.1%3A5000/foo/1"
    );
}

#[test]
fn quoting() {
    for (text, quoted) in [
        ("aZ09_.-", "aZ09_.-"),
        ("a/b:c", "a%2Fb%3Ac"),
        ("~", "%7E"),
        (" %+", "%20%25%2B"),
        ("é", "%C3%A9"),
        ("", ""),
    ] {
        assert_eq!(quote(text), quoted);
        assert_eq!(unquote(quoted), text);
    }
    assert_eq!(unquote("%2f%zz%"), "/%zz%");
    assert_eq!(unquote("%ff"), "\u{fffd}");
}

/// `data-model.md` 12.2.
#[test]
fn order() {
    for (first, second) in [
        ("lua:latest", "lua:5.3"),
        ("lua:5.9", "lua:5.10"),
        ("lua:5.3-py36", "lua:5.3"),
        ("lua:5.3-py35", "lua:5.3-py36"),
        ("lua:5.3-py36-cuda9", "lua:5.3-py36-cuda10"),
        ("lua:5.3-py36-cuda9", "lua:5.3-py36"),
        ("lua:5.3-py-cuda9", "lua:5.3-py36"),
    ] {
        assert_eq!(
            parse(first).precedes(&parse(second)),
            Ok(true),
            "{first} {second}"
        );
        assert_eq!(
            parse(second).precedes(&parse(first)),
            Ok(false),
            "{second} {first}"
        );
    }
    assert_eq!(parse("lua").precedes(&parse("lua")), Ok(false));
    assert_eq!(parse("lua").precedes(&parse("127.0.0.1/lablup/lua:1")), Ok(true));
    let error = parse("lua").precedes(&parse("python"));
    assert_eq!(error, Err(DifferentNames));
    assert_eq!(
        DifferentNames.to_string(),
        "only the image-refs with same names can be compared."
    );
}

proptest! {
    #[test]
    fn parsing_never_panics(text in ".*", likely in "[a-z.:/\\[\\]0-9]{0,12}/?[a-z/]{0,8}:?[a-zA-Z0-9._-]{0,12}") {
        for text in [text, likely] {
            if let Ok(image) = ImageRef::parse(&text, &[]) {
                let again = ImageRef::parse(&image.canonical(), std::slice::from_ref(&image.registry));
                prop_assert_eq!(again.as_ref(), Ok(&image));
                prop_assert_eq!(image.precedes(&image), Ok(false));
                prop_assert_eq!(image.tag_path().split('/').count(), 4);
            }
        }
    }

    #[test]
    fn quoting_is_reversible_and_hides_separators(text in ".*") {
        let quoted = quote(&text);
        prop_assert!(quoted.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-%".contains(&b)));
        prop_assert_eq!(unquote(&quoted), text);
    }
}
