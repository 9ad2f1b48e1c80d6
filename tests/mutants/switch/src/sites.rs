//! Where in a file something can be broken: the syntax around each place that cargo-mutants names.

use std::ops::Range;

use proc_macro2::LineColumn;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, UnOp};

use crate::Place;

/// Bytes of the file.
pub(crate) type Bytes = Range<usize>;

/// A place and what stands there.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// What cargo-mutants calls the place.
    pub(crate) place: Place,
    /// All that is written anew.
    pub(crate) whole: Bytes,
    /// A constant may be computed by it: it stands in a `const fn`.
    pub(crate) is_const: bool,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// `left operator right` with a value.
    Values { left: Bytes, operator: String, right: Bytes },
    /// As `Values`, and may not take its sides' values away.
    Compared { left: Bytes, operator: String, right: Bytes },
    /// `&&`, or `||`.
    Lazy { left: Bytes, is_and: bool, right: Bytes },
    /// `+=` and its like.
    Assigned { left: Bytes, operator: String, right: Bytes },
    /// `!` or `-`, which is left away.
    Unary { operator: String, operand: Bytes },
    /// A pattern and what follows `if`; the place is the pattern's.
    Arm { pattern: Bytes, guard: Option<Bytes>, guard_place: Option<Place> },
    /// `name: value`, or `name` alone, of a struct that takes other fields from `base`.
    Field { name: String, value: Option<Bytes>, base: Bytes },
    /// What a `match` looks at, and the places of its patterns; nothing is broken here.
    Matched { patterns: Vec<Place> },
    /// What a function does.
    Body,
}

pub(crate) fn place(at: LineColumn) -> Place {
    Place { line: at.line, column: at.column + 1 }
}

/// All sites of a file.
pub(crate) fn find(text: &str) -> syn::Result<Vec<Site>> {
    let file = syn::parse_file(text)?;
    let mut finder = Finder { sites: Vec::new(), is_const: false, constants: 0 };
    finder.visit_file(&file);
    Ok(finder.sites)
}

struct Finder {
    sites: Vec<Site>,
    is_const: bool,
    /// Constants around the present place. What is computed while a program is built cannot be chosen when it runs.
    constants: usize,
}

/// Whether an expression binds names for what stands beside it, outside of any block.
fn binds(expression: &Expr) -> bool {
    match expression {
        Expr::Let(_) => true,
        Expr::Binary(both) => binds(&both.left) || binds(&both.right),
        _ => false,
    }
}

impl Finder {
    fn within(&mut self, is_const: bool, walk: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.is_const, is_const);
        walk(self);
        self.is_const = before;
    }

    fn in_constant(&mut self, walk: impl FnOnce(&mut Self)) {
        self.constants += 1;
        walk(self);
        self.constants -= 1;
    }

    fn add(&mut self, at: LineColumn, whole: Bytes, kind: Kind) {
        if self.constants != 0 {
            return;
        }
        self.sites.push(Site { place: place(at), whole, is_const: self.is_const, kind });
    }

    fn add_body(&mut self, block: &syn::Block) {
        let Some(first) = block.stmts.first() else { return };
        let open = block.brace_token.span.open().byte_range().end;
        self.add(first.span().start(), open..block.brace_token.span.close().byte_range().start, Kind::Body);
    }
}

fn bytes(of: &impl Spanned) -> Bytes {
    of.span().byte_range()
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let is_const = item.sig.constness.is_some();
        self.within(is_const, |finder| {
            finder.add_body(&item.block);
            visit::visit_item_fn(finder, item);
        });
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        let is_const = item.sig.constness.is_some();
        self.within(is_const, |finder| {
            finder.add_body(&item.block);
            visit::visit_impl_item_fn(finder, item);
        });
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.within(false, |finder| {
            if let Some(block) = &item.default {
                finder.add_body(block);
            }
            visit::visit_trait_item_fn(finder, item);
        });
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.in_constant(|finder| visit::visit_item_const(finder, item));
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.in_constant(|finder| visit::visit_impl_item_const(finder, item));
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.in_constant(|finder| visit::visit_item_static(finder, item));
    }

    fn visit_type_array(&mut self, array: &'ast syn::TypeArray) {
        self.in_constant(|finder| visit::visit_type_array(finder, array));
    }

    fn visit_expr_repeat(&mut self, array: &'ast syn::ExprRepeat) {
        self.visit_expr(&array.expr);
        self.in_constant(|finder| finder.visit_expr(&array.len));
    }

    fn visit_generic_argument(&mut self, argument: &'ast syn::GenericArgument) {
        self.in_constant(|finder| visit::visit_generic_argument(finder, argument));
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.in_constant(|finder| visit::visit_variant(finder, variant));
    }

    fn visit_expr_binary(&mut self, both: &'ast syn::ExprBinary) {
        let (left, right) = (bytes(&both.left), bytes(&both.right));
        let whole = left.start..right.end;
        let operator = match both.op {
            _ if binds(&both.left) || binds(&both.right) => None,
            BinOp::And(_) => Some(Kind::Lazy { left, is_and: true, right }),
            BinOp::Or(_) => Some(Kind::Lazy { left, is_and: false, right }),
            operator => Some(other_binary(operator, left, right)),
        };
        if let Some(kind) = operator {
            self.add(both.op.span().start(), whole, kind);
        }
        visit::visit_expr_binary(self, both);
    }

    fn visit_expr_unary(&mut self, unary: &'ast syn::ExprUnary) {
        let operator = match unary.op {
            UnOp::Not(_) => "!",
            UnOp::Neg(_) => "-",
            _ => return visit::visit_expr_unary(self, unary),
        };
        if !binds(&unary.expr) {
            let kind = Kind::Unary { operator: operator.into(), operand: bytes(&unary.expr) };
            self.add(unary.op.span().start(), bytes(unary), kind);
        }
        visit::visit_expr_unary(self, unary);
    }

    fn visit_expr_match(&mut self, matched: &'ast syn::ExprMatch) {
        let patterns = matched.arms.iter().map(|arm| place(arm.pat.span().start())).collect();
        self.add(matched.expr.span().start(), bytes(&*matched.expr), Kind::Matched { patterns });
        visit::visit_expr_match(self, matched);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        let guard = arm.guard.as_ref().map(|(_, guard)| &**guard);
        if !guard.is_some_and(binds) {
            let whole = arm.pat.span().byte_range().start..arm.fat_arrow_token.span().byte_range().start;
            let kind = Kind::Arm {
                pattern: bytes(&arm.pat),
                guard: guard.map(bytes),
                guard_place: guard.map(|guard| place(guard.span().start())),
            };
            self.add(arm.pat.span().start(), whole, kind);
        }
        visit::visit_arm(self, arm);
    }

    fn visit_expr_struct(&mut self, made: &'ast syn::ExprStruct) {
        if let Some(base) = &made.rest {
            for field in &made.fields {
                let syn::Member::Named(name) = &field.member else { continue };
                let value = field.colon_token.map(|_| bytes(&field.expr));
                let kind = Kind::Field { name: name.to_string(), value, base: bytes(&**base) };
                self.add(field.span().start(), bytes(field), kind);
            }
        }
        visit::visit_expr_struct(self, made);
    }
}

fn other_binary(operator: BinOp, left: Bytes, right: Bytes) -> Kind {
    let text = match operator {
        BinOp::Eq(_) => "==",
        BinOp::Ne(_) => "!=",
        BinOp::Lt(_) => "<",
        BinOp::Le(_) => "<=",
        BinOp::Gt(_) => ">",
        BinOp::Ge(_) => ">=",
        BinOp::Add(_) => "+",
        BinOp::Sub(_) => "-",
        BinOp::Mul(_) => "*",
        BinOp::Div(_) => "/",
        BinOp::Rem(_) => "%",
        BinOp::BitXor(_) => "^",
        BinOp::BitAnd(_) => "&",
        BinOp::BitOr(_) => "|",
        BinOp::Shl(_) => "<<",
        BinOp::Shr(_) => ">>",
        BinOp::AddAssign(_) => "+=",
        BinOp::SubAssign(_) => "-=",
        BinOp::MulAssign(_) => "*=",
        BinOp::DivAssign(_) => "/=",
        BinOp::RemAssign(_) => "%=",
        BinOp::BitXorAssign(_) => "^=",
        BinOp::BitAndAssign(_) => "&=",
        BinOp::BitOrAssign(_) => "|=",
        BinOp::ShlAssign(_) => "<<=",
        BinOp::ShrAssign(_) => ">>=",
        _ => "",
    };
    let operator = text.to_owned();
    match text {
        "==" | "!=" | "<" | "<=" | ">" | ">=" => Kind::Compared { left, operator, right },
        _ if text.ends_with('=') => Kind::Assigned { left, operator, right },
        _ => Kind::Values { left, operator, right },
    }
}
