//! Rust sources reduced to what the kernel's type inference reads of a library: items and their signatures.
//!
//! rust-analyzer parses every file of every crate and expands the macros around every item before it can tell the type
//! of a notebook's first `let`. Half of the standard library's text is documentation and most of the rest is bodies of
//! functions, inside macros too, where each token costs several times what it costs elsewhere. No type of a caller
//! depends on either.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};

/// The same source without documentation, without the attributes of functions that only the compiler heeds, and with
/// every function's body replaced by one that fits any signature; the source itself where it is not made of Rust's
/// tokens.
pub fn outline(source: &str) -> String {
    match source.parse::<TokenStream>() {
        Ok(tokens) => reduce(tokens, false).to_string(),
        Err(_) => source.to_string(),
    }
}

/// Attributes of a function that say nothing of its type.
const SILENT: [&str; 13] = [
    "allow",
    "cold",
    "inline",
    "must_use",
    "optimize",
    "rustc_allow_const_fn_unstable",
    "rustc_const_stable",
    "rustc_const_unstable",
    "rustc_inherit_overflow_checks",
    "rustc_no_implicit_autorefs",
    "stable",
    "track_caller",
    "unstable",
];

/// Words that may stand between a function's attributes and `fn`.
const QUALIFIERS: [&str; 6] = ["pub", "const", "unsafe", "extern", "async", "default"];

/// Reduces a sequence of tokens and the groups in it; a macro's are tokens like any others.
fn reduce(tokens: TokenStream, in_macro: bool) -> TokenStream {
    let mut reduced: Vec<TokenTree> = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    let mut part = Part::Other;
    while let Some(token) = tokens.next() {
        let ends = is_mark(&token, ';') || is_braces(&token) && part != Part::Other;
        if ends && part == Part::Dropped {
            part = Part::Other;
            continue;
        }
        match token {
            _ if part == Part::Dropped => {}
            TokenTree::Group(_) if ends => reduced.push(endless()),
            TokenTree::Group(group) if attribute(&reduced) > 0 && is_documentation(&group) => {
                reduced.truncate(reduced.len() - attribute(&reduced));
            }
            TokenTree::Group(group) => {
                let in_macro = in_macro || defines_macro(&reduced);
                reduced.push(Group::new(group.delimiter(), reduce(group.stream(), in_macro)).into());
            }
            // A type `fn(T) -> U` has no name, and a macro's function may be called `$name`.
            TokenTree::Ident(word) if word == "fn" && tokens.peek().is_some_and(is_name) => {
                // The unstable functions that macros give to every number can be called by nobody here.
                part = if lighten(&mut reduced) && in_macro { Part::Dropped } else { Part::Signature };
                if part == Part::Signature {
                    reduced.push(word.into());
                } else {
                    remove_head(&mut reduced);
                }
            }
            other => reduced.push(other),
        }
        if ends {
            part = Part::Other;
        }
    }
    reduced.into_iter().collect()
}

/// What is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A function, from its name to its body or semicolon.
    Signature,
    /// A function that is left out.
    Dropped,
    /// Anything else.
    Other,
}

/// `{ loop {} }`, which has every type.
fn endless() -> TokenTree {
    let nothing = Group::new(Delimiter::Brace, TokenStream::new());
    let forever: [TokenTree; 2] = [Ident::new("loop", Span::call_site()).into(), nothing.into()];
    Group::new(Delimiter::Brace, forever.into_iter().collect()).into()
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_braces(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

/// Whether a function's name can begin so.
fn is_name(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Ident(_)) || is_mark(token, '$')
}

/// Whether what was read last is the head of a macro's definition: `macro_rules! name`.
fn defines_macro(read: &[TokenTree]) -> bool {
    matches!(read, [.., TokenTree::Ident(word), _, TokenTree::Ident(_)] if word == "macro_rules")
}

/// How many of the last tokens begin an attribute: 1 of `#`, 2 of `#!`.
fn attribute(read: &[TokenTree]) -> usize {
    match read {
        [.., hash, bang] if is_mark(hash, '#') && is_mark(bang, '!') => 2,
        [.., hash] if is_mark(hash, '#') => 1,
        _ => 0,
    }
}

/// Whether an attribute's brackets say `doc = ...`, as comments with three slashes do too.
fn is_documentation(group: &Group) -> bool {
    let mut words = group.stream().into_iter();
    group.delimiter() == Delimiter::Bracket
        && matches!(words.next(), Some(TokenTree::Ident(word)) if word == "doc")
        && words.next().is_some_and(|mark| is_mark(&mark, '='))
}

/// Where a function's qualifiers begin, of which the last token read is one.
fn qualifiers(read: &[TokenTree]) -> usize {
    let mut start = read.len();
    while let Some(previous) = start.checked_sub(1).and_then(|i| read.get(i)) {
        let belongs = match previous {
            TokenTree::Ident(word) => QUALIFIERS.iter().any(|qualifier| word == qualifier),
            // `pub(crate)`, `extern "C"`.
            TokenTree::Group(group) => {
                let before = start.checked_sub(2).and_then(|i| read.get(i));
                group.delimiter() == Delimiter::Parenthesis
                    && matches!(before, Some(TokenTree::Ident(word)) if word == "pub")
            }
            TokenTree::Literal(_) => {
                let before = start.checked_sub(2).and_then(|i| read.get(i));
                matches!(before, Some(TokenTree::Ident(word)) if word == "extern")
            }
            TokenTree::Punct(_) => false,
        };
        if !belongs {
            break;
        }
        start -= 1;
    }
    start
}

/// The name of the attribute that ends before `end`, if one does.
fn attribute_before(read: &[TokenTree], end: usize) -> Option<String> {
    let [hash, TokenTree::Group(group)] = read.get(end.checked_sub(2)?..end)? else { return None };
    let name = group.stream().into_iter().next()?;
    (is_mark(hash, '#') && group.delimiter() == Delimiter::Bracket).then(|| name.to_string())
}

/// Takes the silent attributes off the function whose head was read; whether it was unstable.
fn lighten(read: &mut Vec<TokenTree>) -> bool {
    let mut is_unstable = false;
    let mut end = qualifiers(read);
    while let Some(name) = attribute_before(read, end) {
        is_unstable |= name == "unstable";
        if SILENT.contains(&name.as_str()) {
            read.drain(end - 2..end);
        }
        end -= 2;
    }
    is_unstable
}

/// Takes away a function's qualifiers and attributes.
fn remove_head(read: &mut Vec<TokenTree>) {
    let mut end = qualifiers(read);
    while attribute_before(read, end).is_some() {
        end -= 2;
    }
    read.truncate(end);
}
