//! Object-safe counterparts of Burn's module traits, so that a boxed backbone implements [`Module`].
//!
//! `ModuleVisitor` and `ModuleMapper` have methods that are generic over the tensor's rank, so they cannot be trait
//! objects. Here a parameter crosses the trait object as `(rank, Any)`, and the other side restores its static rank.

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Bool, Int, Tensor};
use std::any::Any;

/// A reference to a parameter with its rank erased, to pass it through a trait object.
pub struct ParamRef<'a> {
    rank: usize,
    param: &'a dyn Any,
}

/// An owned parameter with its rank erased, to pass it through a trait object.
pub struct ParamBox {
    rank: usize,
    param: Box<dyn Any + Send>,
}

/// Object-safe [`ModuleVisitor`].
pub trait DynVisitor {
    /// Visits a float parameter.
    fn float(&mut self, param: ParamRef<'_>);
    /// Visits an int parameter.
    fn int(&mut self, param: ParamRef<'_>);
    /// Visits a bool parameter.
    fn bool(&mut self, param: ParamRef<'_>);
    /// Visits a training flag.
    fn flag(&mut self, param: &Param<Flag>);
    /// Enters the field `name`.
    fn enter(&mut self, name: &str, container: &str);
    /// Leaves the field `name`.
    fn exit(&mut self, name: &str, container: &str);
}

/// Object-safe [`ModuleMapper`].
pub trait DynMapper {
    /// Maps a float parameter.
    fn float(&mut self, param: ParamBox) -> ParamBox;
    /// Maps an int parameter.
    fn int(&mut self, param: ParamBox) -> ParamBox;
    /// Maps a bool parameter.
    fn bool(&mut self, param: ParamBox) -> ParamBox;
    /// Maps a training flag.
    fn flag(&mut self, param: Param<Flag>) -> Param<Flag>;
    /// Enters the field `name`.
    fn enter(&mut self, name: &str, container: &str);
    /// Leaves the field `name`.
    fn exit(&mut self, name: &str, container: &str);
}

const RANK_KEPT: &str = "the erased rank and kind match the parameter";

fn unbox<T: 'static>(param: ParamBox) -> T {
    *param.param.downcast().expect(RANK_KEPT)
}

macro_rules! with_rank {
    ($rank:expr, $d:ident => $body:expr) => {
        match $rank {
            0 => {
                const $d: usize = 0;
                $body
            }
            1 => {
                const $d: usize = 1;
                $body
            }
            2 => {
                const $d: usize = 2;
                $body
            }
            3 => {
                const $d: usize = 3;
                $body
            }
            4 => {
                const $d: usize = 4;
                $body
            }
            5 => {
                const $d: usize = 5;
                $body
            }
            6 => {
                const $d: usize = 6;
                $body
            }
            7 => {
                const $d: usize = 7;
                $body
            }
            8 => {
                const $d: usize = 8;
                $body
            }
            rank => panic!("parameters of rank {rank} are not supported"),
        }
    };
}

/// Adapts a `&mut dyn DynVisitor` to `ModuleVisitor`.
struct Visit<'a>(&'a mut dyn DynVisitor);

impl ModuleVisitor for Visit<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.float(ParamRef { rank: D, param });
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.0.int(ParamRef { rank: D, param });
    }
    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.0.bool(ParamRef { rank: D, param });
    }
    fn visit_flag(&mut self, param: &Param<Flag>) {
        self.0.flag(param);
    }
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }
    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
}

/// Adapts a `ModuleVisitor` to `DynVisitor`.
struct VisitDyn<'a, V>(&'a mut V);

impl<V: ModuleVisitor> DynVisitor for VisitDyn<'_, V> {
    fn float(&mut self, param: ParamRef<'_>) {
        with_rank!(param.rank, D => self.0.visit_float::<D>(param.param.downcast_ref().expect(RANK_KEPT)));
    }
    fn int(&mut self, param: ParamRef<'_>) {
        with_rank!(param.rank, D => self.0.visit_int::<D>(param.param.downcast_ref().expect(RANK_KEPT)));
    }
    fn bool(&mut self, param: ParamRef<'_>) {
        with_rank!(param.rank, D => self.0.visit_bool::<D>(param.param.downcast_ref().expect(RANK_KEPT)));
    }
    fn flag(&mut self, param: &Param<Flag>) {
        self.0.visit_flag(param);
    }
    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

/// Adapts a `&mut dyn DynMapper` to `ModuleMapper`.
struct Map<'a>(&'a mut dyn DynMapper);

impl ModuleMapper for Map<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        unbox(self.0.float(ParamBox { rank: D, param: Box::new(param) }))
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        unbox(self.0.int(ParamBox { rank: D, param: Box::new(param) }))
    }
    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        unbox(self.0.bool(ParamBox { rank: D, param: Box::new(param) }))
    }
    fn map_flag(&mut self, param: Param<Flag>) -> Param<Flag> {
        self.0.flag(param)
    }
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }
    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
}

/// Adapts a `ModuleMapper` to `DynMapper`.
struct MapDyn<'a, M>(&'a mut M);

impl<M: ModuleMapper> DynMapper for MapDyn<'_, M> {
    fn float(&mut self, param: ParamBox) -> ParamBox {
        let rank = param.rank;
        with_rank!(rank, D => ParamBox { rank, param: Box::new(self.0.map_float::<D>(unbox(param))) })
    }
    fn int(&mut self, param: ParamBox) -> ParamBox {
        let rank = param.rank;
        with_rank!(rank, D => ParamBox { rank, param: Box::new(self.0.map_int::<D>(unbox(param))) })
    }
    fn bool(&mut self, param: ParamBox) -> ParamBox {
        let rank = param.rank;
        with_rank!(rank, D => ParamBox { rank, param: Box::new(self.0.map_bool::<D>(unbox(param))) })
    }
    fn flag(&mut self, param: Param<Flag>) -> Param<Flag> {
        self.0.map_flag(param)
    }
    fn enter(&mut self, name: &str, container: &str) {
        self.0.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.0.exit_module(name, container);
    }
}

/// Passes a visitor to a trait object's `visit_dyn`.
pub(crate) fn visit(visit_dyn: impl FnOnce(&mut dyn DynVisitor), visitor: &mut impl ModuleVisitor) {
    visit_dyn(&mut VisitDyn(visitor));
}

/// Passes a mapper to a trait object's `map_dyn`.
pub(crate) fn map<T>(map_dyn: impl FnOnce(&mut dyn DynMapper) -> T, mapper: &mut impl ModuleMapper) -> T {
    map_dyn(&mut MapDyn(mapper))
}

/// Visits a concrete module with an object-safe visitor.
pub(crate) fn visit_module<M: Module>(module: &M, visitor: &mut dyn DynVisitor) {
    module.visit(&mut Visit(visitor));
}

/// Maps a concrete module with an object-safe mapper.
pub(crate) fn map_module<M: Module>(module: M, mapper: &mut dyn DynMapper) -> M {
    module.map(&mut Map(mapper))
}
